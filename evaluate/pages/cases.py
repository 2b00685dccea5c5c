"""Which queries a fusion won and which it lost, and what to show of them.

Shape letters: I images, T captions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.pages import attention, matched, thumbnails
from hada.extract.common.console import say
from hada.extract.common.errors import HadaError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.image_files import ImageFile
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split

CASES = 6


@dataclass(frozen=True)
class Heat:
    """A model's patches on an image: two data URIs to lay one over the other."""

    model: str
    image: str
    overlay: str


@dataclass(frozen=True)
class Case:
    """One caption query. Ranks count from 1; `first` is what a score ranks first.

    `words` are each model's, with weights; `answers` say, for the same words, which patch answered
    them, where nodes are matched.
    """

    caption: str
    ranks: dict[str, int]
    image: str
    first: list[tuple[str, str, bool]]
    heats: list[Heat] = field(default_factory=list)
    words: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What cases are made from. `run` is the fusion, `models` the single models."""

    gallery: Gallery
    data: CaptionDataset
    folder: RunFolder
    run: EmbeddingMethod | NodeMethod
    models: Sequence[EmbeddingMethod]
    ranks: dict[str, Ranks]
    tokenizers: dict[str, Any]


def choose(run: Ranks, best: Ranks, count: int = CASES) -> tuple[list[int], list[int]]:
    """Captions with the largest gain and the largest loss in rank against one model.

    Ratios count, not differences: from 40th to 1st is more than from 400th to 300th. No two are
    of the same rank pair's tie beyond their order, so the choice is reproducible.
    """
    change = np.log(run.t2i + 1) - np.log(best.t2i + 1)
    order = np.argsort(change, kind="stable")
    wins = [int(j) for j in order[:count] if change[j] < 0]
    losses = [int(j) for j in order[::-1][:count] if change[j] > 0]
    return wins, losses


def make_cases(material: Material, captions: Sequence[int]) -> list[Case]:
    """What the page shows of these caption queries.

    Raises:
        ImageError: A image cannot be read.
    """
    if not captions:  # nothing was won, or nothing lost
        return []
    gallery, run = material.gallery, material.run
    images = gallery.caption_to_image[np.asarray(captions, np.int64)]
    look = _attention(material, images, np.asarray(captions, np.int64))
    cases = []
    for number, caption in enumerate(captions):
        text = material.data.captions[gallery.caption_rows[caption]]
        first = []
        for method in (run, *material.models):
            best = method.first_image(caption)
            right = best == images[number]
            first.append((method.name, thumbnails.thumbnail(_path(material, best)), right))
        shown = look(number, text)
        cases.append(
            Case(
                caption=text,
                ranks={
                    name: round(float(ranks.t2i[caption])) + 1
                    for name, ranks in material.ranks.items()
                },
                image=thumbnails.thumbnail(_path(material, int(images[number]))),
                first=first,
                heats=shown.heats,
                words=shown.words,
                answers=shown.answers,
            )
        )
    return cases


def _path(material: Material, image: int) -> ImageFile:
    return material.data.image_paths[int(material.gallery.image_rows[image])]


@dataclass(frozen=True)
class Shown:
    """What the fusion looks at in one image and one caption; see `Case`."""

    heats: list[Heat] = field(default_factory=list)
    words: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)


def _attention(
    material: Material, images: NDArray[np.int64], captions: NDArray[np.int64]
) -> Callable[[int, str], Shown]:
    """A function from the number of a case to its heat maps and weighted words."""
    config = material.folder.config()
    names = config["models"]
    stores = {store.spec.model.name: store for store in material.gallery.stores}
    split = Split(
        [stores[name] for name in names],
        first_tokens_only=material.folder.recipe().features.first_tokens_only,
    )
    fuser, _ = material.folder.load_best()
    # The gallery may lack items that the run's own models could read.
    rows = np.searchsorted(split.image_rows, material.gallery.image_rows[images])
    lines = np.searchsorted(split.caption_rows, material.gallery.caption_rows[captions])
    answers: list[list[list[matched.Answer]]] = []
    if fuser.nodes is not None:
        found = [
            matched.match(fuser.nodes, split, row, line)
            for row, line in zip(rows.tolist(), lines.tolist(), strict=True)
        ]
        on_images, on_captions = [one.patches for one in found], [one.words for one in found]
        answers = [one.answers for one in found]
    else:
        try:
            on_images = attention.attention(fuser, split, "image", rows)
            on_captions = attention.attention(fuser, split, "caption", lines)
        except HadaError as error:
            say(f"no attention on the page: {error}")
            return lambda _number, _text: Shown()

    def look(number: int, text: str) -> Shown:
        shown = Shown()
        path = _path(material, int(images[number]))
        grids: dict[int, tuple[int, bool]] = {}
        for model, name in enumerate(names):
            spec = stores[name].spec.model
            last = spec.image is not None and spec.image.global_token == "last"
            patches = attention.grid(on_images[number][model], global_last=last)
            if patches is not None:
                grids[model] = len(patches), last
                square = any(word in str(spec.preprocessing) for word in ("shortest", "crop"))
                image = thumbnails.thumbnail(path, square=square)
                shown.heats.append(Heat(name, image, thumbnails.heat_map(patches)))
            if name not in material.tokenizers:
                continue
            weights = on_captions[number][model]
            spans = attention.word_spans(text, len(weights), material.tokenizers[name])
            if spans is None:
                continue
            shown.words[name] = [(w, float(weights[a:b].sum())) for w, a, b in spans]
            if answers:
                given = [
                    answers[number][model][a + int(np.argmax(weights[a:b]))] for _, a, b in spans
                ]
                shown.answers[name] = [matched.told(one, names, grids) for one in given]
        return shown

    return look
