"""`hada-evaluate search`: from names to an index, from queries to results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hada.evaluate.pages.document import document
from hada.evaluate.pages.rendering import asset
from hada.evaluate.pages.thumbnails import thumbnail
from hada.evaluate.search.searcher import Hit, Searcher
from hada.extract.common import atomic
from hada.extract.common.console import say, tell
from hada.extract.common.documents import LARGE_BYTES, decode, read_bytes
from hada.extract.common.errors import UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.image_files import ImageFile
from hada.extract.datasets.images import ImageError, open_image
from hada.extract.manifest import Manifest
from hada.extract.spec import SideName

# Queries that are encoded together.
BATCH = 32
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Asked:
    """The queries of one command: `names` are shown, `sources` are texts or image files."""

    kind: SideName
    names: list[str]
    sources: list[Any]


def search(
    manifest: Manifest,
    *,
    text: str | None,
    image: Path | None,
    queries: Path | None = None,
    dataset: str | None,
    split: str,
    run: Path | str | None,
    model: str | None,
    find: str | None,
    top: int,
    faiss: bool,
    jsonl: bool,
    page: Path | None,
    device: str,
) -> int:
    """Answer queries and print the results; this is the command `hada-evaluate search`.

    Args:
        manifest: Where data sets, stores and runs are.
        text: The query as a sentence; None where it is something else.
        image: The query as an image file; None where it is something else.
        queries: Many queries: a file with a sentence a line, or a folder of images.
        dataset: The data set to search; None takes the run's, else the manifest's default.
        split: The split to search.
        run: The run that scores. None takes the data set's newest, unless `model` is given.
        model: One frozen model in place of a run.
        find: `images` or `captions`; None finds the other kind than the query.
        top: Number of results for each query.
        faiss: Search approximately, and print how many exact results were found.
        jsonl: Print one JSON object per result.
        page: Also write the results as an HTML page.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        0, or 1 where an image of a folder could not be read; the others are answered.

    Raises:
        UsageError: No query, or several kinds of them; a run and a model; an unknown name.
        RunError: There is no trained run.
        StoreError: A store is missing or damaged.
        ImageError: The image cannot be read.
    """
    asked = _asked(text, image, queries)
    searcher = Searcher.open(
        manifest, run=run, model=model, dataset=dataset, split=split, device=device
    )
    if find is None:
        find = "captions" if asked.kind == "image" else "images"
    side: SideName = "image" if find == "images" else "caption"
    several = queries is not None
    answered: list[tuple[str, list[Hit]]] = []
    failed = 0
    for name, hits in _answers(searcher, asked, side, top, faiss):
        if hits is None:
            failed += 1
            continue
        answered.append((name, hits))
        if several and not jsonl:
            tell(f"{name}:")
        for hit in hits:
            tell(json.dumps({"query": name, **hit}) if jsonl else _line(hit))
    if page is not None:
        _write_page(page, searcher, side, answered)
    return 1 if failed else 0


def _asked(text: str | None, image: Path | None, queries: Path | None) -> Asked:
    """The queries; raises `UsageError`."""
    if [text is None, image is None, queries is None].count(False) != 1:
        raise UsageError("expected either a sentence or --image FILE, or --queries for many")
    if text is not None:
        return Asked("caption", [text], [text])
    if image is not None:
        return Asked("image", [str(image)], [image])
    assert queries is not None
    if queries.is_dir():
        files = sorted(f for f in queries.iterdir() if f.suffix.lower() in _PICTURES)
        if not files:
            raise UsageError(f"{queries}: no images there ({', '.join(_PICTURES)})")
        return Asked("image", [str(file) for file in files], list(files))
    where = str(queries)
    content = decode(read_bytes(queries, UsageError, LARGE_BYTES), where, UsageError)
    lines = [line.strip() for line in content.split("\n")]
    lines = [line for line in lines if line]
    if not lines:
        raise UsageError(f"{queries}: no queries there: expected a sentence a line")
    return Asked("caption", lines, lines)


def _answers(
    searcher: Searcher, asked: Asked, side: SideName, top: int, faiss: bool
) -> Iterator[tuple[str, list[Hit] | None]]:
    """Name and results of each query, batch after batch; None for an image that is broken."""
    for first in range(0, len(asked.names), BATCH):
        names, sources = (x[first : first + BATCH] for x in (asked.names, asked.sources))
        broken: dict[str, Exception] = {}
        if asked.kind == "image":
            images = []
            for name, source in zip(names, sources, strict=True):
                try:
                    images.append(open_image(source))
                except ImageError as error:
                    if len(asked.names) == 1:
                        raise
                    say(f"left out: {error}")
                    broken[name] = error
            queries = searcher.encoder.images(images) if images else []
        else:
            queries = searcher.encoder.texts(sources)
        found = iter(searcher.find(queries, side, top, faiss=faiss) if queries else [])
        for name in names:
            yield name, None if name in broken else next(found)


def _write_page(
    page: Path, searcher: Searcher, side: SideName, answered: Sequence[tuple[str, list[Hit]]]
) -> None:
    """The results as one page, which says what was searched."""
    index = searcher.index(side)
    kind = "run" if searcher.run else "model"
    about = (
        f"{kind} {searcher.name}, {searcher.dataset}/{searcher.split}, "
        f"{len(index.ids):,} {side}s searched"
    )
    text = as_page("", [], side, searcher.data, about=about, answers=answered)
    atomic.write_bytes(page, text.encode())
    say(f"written to {page}")


def as_page(
    title: str,
    hits: Sequence[Hit],
    side: SideName,
    data: CaptionDataset | None,
    *,
    about: str = "",
    answers: Sequence[tuple[str, Sequence[Hit]]] | None = None,
) -> str:
    """The results as a self-contained page.

    Args:
        title: The query.
        hits: Its results.
        side: What was found.
        data: The data set, whose images are shown; None shows none.
        about: What was searched, for people.
        answers: Several queries with their results, in place of `title` and `hits`.
    """
    shown = [(title, hits)] if answers is None else answers
    pictures = dict(zip(data.image_ids, data.image_paths, strict=True)) if data else {}
    owners = _owners(data) if data and side == "caption" else {}
    queries = [
        {
            "query": query,
            "hits": [
                _card(hit, pictures.get(str(owners.get(hit["id"], hit["id"])))) for hit in found
            ],
        }
        for query, found in shown
    ]
    style = asset("templates/base.css") + asset("templates/search.css")
    heading = shown[0][0] if len(shown) == 1 else f"{len(shown)} queries"
    return document(
        "search.html", title=heading, style=style, side=side, about=about, queries=queries
    )


def _owners(data: CaptionDataset) -> dict[str, str]:
    """The image's id of every caption's; texts alone have none."""
    if not data.image_ids:
        return {}
    images = data.caption_to_image.tolist()
    return {id_: data.image_ids[i] for id_, i in zip(data.caption_ids, images, strict=True)}


def _card(hit: Hit, picture: ImageFile | None) -> dict[str, Any]:
    """One result as the template takes it; `picture` is the image's file, None without one."""
    file = Path(hit["file"]) if isinstance(picture, Path) and "file" in hit else None
    return {
        "place": hit["place"],
        "score": hit["score"],
        "id": hit["id"],
        "text": " / ".join(hit.get("captions", [])[:2]),
        "picture": "" if picture is None else thumbnail(picture),
        "link": "" if file is None else f"file://{quote(str(file.absolute()))}",
        "models": hit.get("models", {}),
    }


def _line(hit: Hit) -> str:
    parts = [f"{hit['place']:3}", f"{hit['score']:.3f}", hit["id"]]
    parts += [f"{name} {value:.3f}" for name, value in hit.get("models", {}).items()]
    parts += [hit["file"]] if "file" in hit else []
    parts += hit.get("captions", [])[:1]
    return "  ".join(parts)
