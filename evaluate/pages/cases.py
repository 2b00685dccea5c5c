"""What a page shows of the queries that were chosen: images, captions, ranks, first results.

Shape letters: I images, T captions, Q queries.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.pages.choose import WAYS, Chosen, places
from hada.evaluate.pages.look import Shown, looker
from hada.evaluate.pages.thumbnails import Pictures
from hada.extract.common.arrays import group_by_image
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.run_folder import RunFolder

Scored = EmbeddingMethod | NodeMethod


@dataclass(frozen=True)
class Material:
    """What cases are made from.

    `run` is the fusion, `models` the single models, `others` what is shown beside them. `ranks` has
    those of all of them; `pictures` collects the images of the page.
    """

    gallery: Gallery
    data: CaptionDataset
    folder: RunFolder
    run: Scored
    models: Sequence[EmbeddingMethod]
    others: Sequence[EmbeddingMethod]
    ranks: dict[str, Ranks]
    tokenizers: dict[str, Any]
    pictures: Pictures

    @property
    def methods(self) -> list[Scored]:
        """All that a case shows, the fusion first."""
        return [self.run, *self.models, *self.others]

    def picture(self, image: int) -> int:
        """The number of an image's picture, by its row in the gallery."""
        return self.pictures.number(self.data.image_paths[int(self.gallery.image_rows[image])])

    def text(self, caption: int) -> str:
        """A caption, by its row in the gallery."""
        return self.data.captions[int(self.gallery.caption_rows[caption])]


@dataclass(frozen=True)
class First:
    """What a method ranks first: an image's picture, or a caption's text."""

    method: str
    right: bool
    picture: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Case:
    """One query.

    Attributes:
        way: `i2t` or `t2i`.
        outcome: Against the best single model for this query, see `hada.evaluate.pages.choose`.
        how: Why it was chosen.
        caption: The query, or, of an image, that of its captions which the fusion ranks best.
        captions: All captions of the image.
        picture: The image, as a number of `Pictures`.
        places: Per method the best and the worst rank over the orders of ties, from 1.
        first: What each method ranks first.
        shown: What the fusion looks at in the image and the caption.
    """

    way: str
    outcome: int
    how: tuple[str, ...]
    caption: str
    captions: list[str]
    picture: int
    places: dict[str, tuple[int, int]]
    first: list[First]
    shown: Shown = field(default_factory=Shown)


def make_cases(material: Material, chosen: Sequence[Chosen]) -> list[Case]:
    """What the page shows of these queries, in their order.

    Raises:
        ImageError: An image cannot be read.
    """
    gallery, owner = material.gallery, material.gallery.caption_to_image
    captions_of, bounds = group_by_image(owner, len(gallery.image_rows))
    captions = [captions_of[start:stop] for start, stop in itertools.pairwise(bounds)]
    matches = {
        way: {
            case.query: captions[case.query] if way == "i2t" else owner[[case.query]]
            for case in chosen
            if case.way == way
        }
        for way in WAYS
    }
    firsts, pairs = _ranked_first(material, matches)
    both = np.array([pairs[case.way, case.query] for case in chosen], np.int64).reshape(-1, 2)
    look = looker(gallery, material.folder, material.tokenizers, both[:, 0], both[:, 1])
    cases = []
    for number, case in enumerate(chosen):
        image, caption = pairs[case.way, case.query]
        text = material.text(caption)
        cases.append(
            Case(
                way=case.way,
                outcome=case.outcome,
                how=case.how,
                caption=text,
                captions=[material.text(int(row)) for row in captions[image]],
                picture=material.picture(image),
                places={
                    method.name: _from_one(material.ranks[method.name], case)
                    for method in material.methods
                },
                first=firsts[case.way, case.query],
                shown=look(number, text),
            )
        )
    return cases


def _ranked_first(
    material: Material, matches: dict[str, dict[int, NDArray[np.int64]]]
) -> tuple[dict[tuple[str, int], list[First]], dict[tuple[str, int], tuple[int, int]]]:
    """What each method ranks first for each query, and the image and caption to look at.

    Args:
        material: What is scored.
        matches: Per direction and query its matches.
    """
    firsts: dict[tuple[str, int], list[First]] = {}
    pairs: dict[tuple[str, int], tuple[int, int]] = {}
    for way, queries in matches.items():
        for method in material.methods:
            scores_QN = scores_of(method, way, np.array(list(queries), np.int64))
            low, high = places(material.ranks[method.name], way)
            for scores_N, (query, own) in zip(scores_QN, queries.items(), strict=True):
                if method is material.run:
                    best = int(own[np.argmax(scores_N[own])])
                    pairs[way, query] = (query, best) if way == "i2t" else (best, query)
                found = first_place(scores_N, own, int(low[query]), int(high[query]))
                firsts.setdefault((way, query), []).append(
                    First(method.name, found in own, text=material.text(found))
                    if way == "i2t"
                    else First(method.name, found in own, picture=material.picture(found))
                )
    return firsts, pairs


def _from_one(ranks: Ranks, case: Chosen) -> tuple[int, int]:
    low, high = places(ranks, case.way)
    return int(low[case.query]) + 1, int(high[case.query]) + 1


def scores_of(method: Scored, way: str, queries: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, N) a method's scores of some queries with all items that they rank."""
    if isinstance(method, EmbeddingMethod):
        image, caption = method.pair
        return image[queries] @ caption.T if way == "i2t" else caption[queries] @ image.T
    images, captions = np.arange(len(method.embedded.fused_image)), method.embedded.fused_caption
    if not len(queries):
        return np.zeros((0, len(captions) if way == "i2t" else len(images)), np.float32)
    part = method.embedded.part(
        *((queries, np.arange(len(captions))) if way == "i2t" else (images, queries))
    )
    scores_IT = np.concatenate([block for _, block in part.scores()], axis=1)
    return scores_IT if way == "i2t" else scores_IT.T


def first_place(scores_N: NDArray[np.float32], own: NDArray[np.int64], low: int, high: int) -> int:
    """The item in the first place, in accordance with the exact rank of the query's match.

    Scores are float32 here, and blocks of another size round in another way: where two are that
    close, the rank that the figures are made of decides.

    Args:
        scores_N: Of all items.
        own: The query's matches.
        low: Best place of the best match over all orders of its ties, from 0.
        high: The worst one.
    """
    scores = scores_N.astype(np.float64)
    if high == 0:
        return int(own[np.argmax(scores[own])])
    if low > 0:
        scores[own] = -np.inf
    return int(np.argmax(scores))
