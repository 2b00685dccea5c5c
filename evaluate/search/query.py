"""`hada-evaluate search`: from names to an index, from a query to results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hada.evaluate.methods.build import finished_runs, open_gallery
from hada.evaluate.pages.document import document
from hada.evaluate.pages.templates import asset
from hada.evaluate.pages.thumbnails import thumbnail
from hada.evaluate.search.encoder import Encoder
from hada.evaluate.search.index import Index, build_index, faiss_top
from hada.extract.common import atomic
from hada.extract.common.console import say, tell
from hada.extract.common.errors import DatasetError, RunError, UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import Manifest
from hada.extract.spec import SideName
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder

Hit = dict[str, Any]


def search(
    manifest: Manifest,
    *,
    text: str | None,
    image: Path | None,
    dataset: str | None,
    split: str,
    run: Path | None,
    model: str | None,
    find: str | None,
    top: int,
    faiss: bool,
    jsonl: bool,
    page: Path | None,
    device: str,
) -> None:
    """Answer one query and print the results; this is the command `hada-evaluate search`.

    Args:
        manifest: Where data sets, stores and runs are.
        text: The query as a sentence; None where it is an image.
        image: The query as an image file; None where it is a sentence.
        dataset: The data set to search; None takes the run's, else the manifest's default.
        split: The split to search.
        run: The trained run that scores. None takes the data set's newest, unless `model` is given.
        model: One frozen model in place of a run.
        find: `images` or `captions`; None finds the other kind than the query.
        top: Number of results.
        faiss: Search approximately, and print how many exact results were found.
        jsonl: Print one JSON object per result.
        page: Also write the results as an HTML page.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: Neither a text nor an image, or both; a run and a model; an unknown name.
        RunError: There is no trained run.
        StoreError: A store is missing or damaged.
        ImageError: The image cannot be read.
    """
    if (text is None) == (image is None):
        raise UsageError("expected either a sentence or --image FILE")
    if run is not None and model is not None:
        raise UsageError("--run and --model: give one of them")
    folder = None if model is not None else _run(manifest, dataset, run)
    name = dataset or (folder.config()["dataset"] if folder else None)
    entry = manifest.dataset(name)
    entry.split(split)
    models = [model] if model is not None else folder.config()["models"] if folder else []
    gallery = open_gallery(manifest, entry.name, split, models)
    side: SideName = (
        "caption" if (find or ("images" if text else "captions"))[0] == "c" else "image"
    )
    index_folder = folder.path if folder else Path(manifest.runs) / entry.name
    file = index_folder / f"index-{'' if folder else f'{model}-'}{split}-{side}.npz"
    index, kept = build_index(gallery.stores, folder, side, device, file)
    if not kept:
        say(f"index of {len(index.ids):,} {side}s written to {file}")
    encoder = Encoder(manifest, gallery.stores, device, folder)
    query = encoder.text(text) if text is not None else encoder.image(Path(str(image)))
    exact = index.top(query, top)
    ranked = faiss_top(index, query, min(top, len(index.ids)), file) if faiss else exact
    if faiss:
        same = len({row for row, _ in ranked} & {row for row, _ in exact})
        say(f"faiss found {same} of the {len(exact)} that an exact search finds")
    data = _dataset(manifest, entry.name, split)
    hits = describe(index, ranked, side, data)
    for hit in hits:
        tell(json.dumps(hit) if jsonl else _line(hit))
    if page is not None:
        title = text if text is not None else f"captions and images like {image}"
        atomic.write_bytes(page, as_page(title, hits, side, data).encode())
        say(f"written to {page}")


def describe(
    index: Index, ranked: Sequence[tuple[int, float]], side: SideName, data: CaptionDataset | None
) -> list[Hit]:
    """Rank, score and id of each result; captions and file if the data set is on this machine."""
    hits = []
    rows: dict[str, int] = {}
    if data is not None:
        ids = data.image_ids if side == "image" else data.caption_ids
        rows = {id_: row for row, id_ in enumerate(ids)}
    for rank, (row, score) in enumerate(ranked, start=1):
        hit: Hit = {"place": rank, "score": round(score, 6), "id": index.ids[row]}
        at = rows.get(index.ids[row])
        if data is not None and at is not None:
            image_row = at if side == "image" else int(data.caption_to_image[at])
            hit["file"] = str(data.image_paths[image_row])
            hit["captions"] = (
                [data.captions[at]]
                if side == "caption"
                else [data.captions[j] for j in (data.caption_to_image == at).nonzero()[0]]
            )
        hits.append(hit)
    return hits


def as_page(title: str, hits: Sequence[Hit], side: SideName, data: CaptionDataset | None) -> str:
    """The results as a self-contained page."""
    shown = [
        {
            "place": hit["place"],
            "score": hit["score"],
            "text": " / ".join(hit.get("captions", [hit["id"]])[:2]),
            "picture": thumbnail(Path(hit["file"])) if data is not None and "file" in hit else "",
        }
        for hit in hits
    ]
    style = asset("templates/base.css") + asset("templates/search.css")
    return document("search.html", title=title, style=style, side=side, hits=shown)


def _line(hit: Hit) -> str:
    said = f"  {hit['captions'][0]}" if hit.get("captions") else ""
    return f"{hit['place']:3}  {hit['score']:.3f}  {hit['id']}{said}"


def _run(manifest: Manifest, dataset: str | None, run: Path | None) -> RunFolder:
    if run is not None:
        return RunFolder(run)
    runs_folder = Path(manifest.runs) / manifest.dataset(dataset).name
    runs = finished_runs(runs_folder)
    if not runs:
        raise RunError(
            f"{runs_folder}: no trained run. Train one (hada-fuse train) or give --model NAME"
        )
    return RunFolder(max(runs, key=lambda path: (path / BEST).stat().st_mtime))


def _dataset(manifest: Manifest, name: str, split: str) -> CaptionDataset | None:
    """Captions and files; a search works without them, and then shows ids alone."""
    try:
        return read_dataset(manifest.dataset(name), split)
    except DatasetError as error:
        say(f"ids alone: {error}")
        return None
