"""Images of one split that are nearly images of another, by the frozen models' own embeddings.

How similar two copies of an image are depends on the model: 0.98 for one, 0.8 for another. The test
is therefore a ratio, as Lowe's for matching keypoints (IJCV 2004, section 7.1): the distance to the
nearest image over that to the fifth nearest. Copies are far nearer than anything else; neighbours
that merely look alike are not. The fifth and not the second, because an image may have several
copies. Of 100 images of Flickr8k that were cropped or made smaller and saved again, two small
encoders find 99 among 600 images, and two pairs among 400 other images. In drawn scenes, many of
which hold nearly the same shapes, 25 of 1,000 images are taken for copies of one of 4,000. Among
few images the fifth nearest is far from everything, so fewer than 50 are not searched.

Shape letters: I, J images of the two splits, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import StoreError
from hada.extract.store.commit import COMMIT
from hada.extract.store.reader import StoreReader, open_store, read_spec

# Of a distance to the fifth nearest: see above.
MOST_RATIO = 0.5
# Of each single model: one that is certain does not decide for the others.
_MOST_OF_ONE = 0.75
_RIVAL = 5
_FEWEST = 50
# Scores of one block, float32: 64 MiB.
_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class NearDuplicate:
    """An image and the one of the other split that it nearly is.

    Attributes:
        image: Its id.
        other: The id of the other.
        ratio: Distance to it over that to the fifth nearest, the geometric mean over models.
    """

    image: str
    other: str
    ratio: float


def near_duplicates(
    stores: Sequence[StoreReader], others: Sequence[StoreReader]
) -> list[NearDuplicate]:
    """Images of one split whose near copies are in another split.

    Args:
        stores: The split's stores, of one or several models; those without embeddings do not count.
        others: The other split's, of the same models in the same order.

    Returns:
        The pairs on which all models agree, the nearest first; none where no model has embeddings
        or the other split has fewer than 50 images.
    """
    found: NDArray[np.int64] | None = None
    logs: list[NDArray[np.float64]] = []
    agreed = np.zeros(0, bool)
    for store, other in zip(stores, others, strict=True):
        pair = _unit(store), _unit(other)
        if pair[0] is None or pair[1] is None or len(pair[1]) < _FEWEST:
            continue
        nearest, fifth = _neighbours(pair[0], pair[1])
        if found is None:
            # The others judge the first one's pairs: of several copies each may have its nearest.
            found, agreed = nearest, np.ones(len(nearest), bool)
        cosines = np.einsum("ie,ie->i", pair[0], pair[1][found])
        ratios = (1 - cosines) / np.maximum(1 - fifth, 1e-6)
        agreed &= ratios < _MOST_OF_ONE  # NaN, of an image that could not be read, is not below
        logs.append(np.log(np.maximum(ratios, 1e-9)))
    if found is None:
        return []
    ratio = np.exp(np.mean(logs, axis=0))
    rows = np.flatnonzero(agreed & (ratio < MOST_RATIO))
    ids, other_ids = stores[0].image.ids, others[0].image.ids
    pairs = [NearDuplicate(ids[r], other_ids[int(found[r])], float(ratio[r])) for r in rows]
    return sorted(pairs, key=lambda pair: pair.ratio)


def stores_of_both(split: Path, other: Path) -> tuple[list[StoreReader], list[StoreReader]]:
    """The stores of the same models in two folders, or two single stores.

    Args:
        split: A store, or the folder of a split's stores.
        other: The same of the other split.

    Returns:
        The stores of `split` and those of `other`, in one order of models; stores of fusions are
        left out.

    Raises:
        StoreError: There is no store of one model in both, or one is damaged.
    """
    if _is_store(split) and _is_store(other):
        return [open_store(split)], [open_store(other)]
    names = [sorted(p.name for p in _folders(place) if _is_store(p)) for place in (split, other)]
    # What a fusion made is no further opinion.
    both = [
        name
        for name in names[0]
        if name in names[1] and "@" not in name and read_spec(split / name).model.family != "hada"
    ]
    if not both:
        raise StoreError(f"{split} and {other}: no store of one model in both. Extract both splits")
    return [open_store(split / name) for name in both], [open_store(other / name) for name in both]


def _is_store(place: Path) -> bool:
    return (place / COMMIT).exists()


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        raise StoreError(f"{place}: no such folder")
    return [path for path in place.iterdir() if path.is_dir()]


def _unit(store: StoreReader) -> NDArray[np.float32] | None:
    """(I, E) embeddings at unit length; NaN where an image could not be read."""
    values = store.image.embeddings()
    return None if values is None else np.asarray(unit_rows(values.astype(np.float32)), np.float32)


def _neighbours(
    images_IE: NDArray[np.float32], others_JE: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(I,) the nearest of the others, and the cosine of the fifth nearest."""
    # What cannot be compared is nobody's neighbour.
    others_JE = np.nan_to_num(others_JE, nan=0.0)
    nearest = np.zeros(len(images_IE), np.int64)
    fifth = np.zeros(len(images_IE))
    step = max(1, _BLOCK_NUMBERS // len(others_JE))
    for start in range(0, len(images_IE), step):
        rows = slice(start, start + step)
        scores_IJ = np.nan_to_num(images_IE[rows], nan=0.0) @ others_JE.T
        nearest[rows] = scores_IJ.argmax(axis=1)
        fifth[rows] = np.partition(scores_IJ, -_RIVAL, axis=1)[:, -_RIVAL]
    return nearest, fifth
