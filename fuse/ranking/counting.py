"""Counts what beats or ties with each query's best positive: exact, at the speed of float32.

The scores of a tile are computed in float32, whose error has a bound. What lies farther from the
threshold than that bound is decided; the few scores that do not are computed again in float64. So
the counts are those of float64, and memory is one tile, whatever the sizes.

Shape letters: I images, T captions, E embedding width, B images and C captions of a tile, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import group_by_image

# Rows of a tile; counts down its columns then fit into a byte.
MOST_ROWS = 250
# Scores of a tile: 8 MiB of float32 on the CPU stay near its caches, a GPU wants large pieces.
TILE_NUMBERS = 1 << 21
TILE_NUMBERS_ELSEWHERE = 1 << 27
PAIRS_AT_ONCE = 1 << 11
UNIT_ROUNDOFF = 2.0**-24
# Where more than this share of a tile is undecided, all of it is computed in float64.
SHARE_UNDECIDED = 0.01
# Embeddings shorter or longer than these would leave float32's range when multiplied.
SHORTEST, LONGEST = 1e-12, 1e12

Floats = NDArray[np.floating[Any]]
Counts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
# Row and column counts of the scores above, and the flat places of the undecided ones, twice:
# those undecided for their row and those undecided for their column.
Screened = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Thresholds:
    """What counts as better than, and as level with, the positive of each query.

    best_I: score of each image's best caption. positive_T: score of each caption's image.
    caption_to_image_T: the row of each caption's image. tolerance: closer than this is a tie.
    """

    best_I: NDArray[np.float64]
    positive_T: NDArray[np.float64]
    caption_to_image_T: NDArray[np.int64]
    tolerance: float


def count_better(
    image_IE: Floats,
    caption_TE: Floats,
    found: Thresholds,
    *,
    device: str = "cpu",
    tile_numbers: int | None = None,
) -> Counts:
    """Count the items that score better than a query's positive, or level with it.

    A query's own positives are counted neither as better nor as level.

    Args:
        image_IE: (I, E).
        caption_TE: (T, E).
        found: The scores of the queries' own positives, which others are compared with.
        device: Where the products are computed.
        tile_numbers: Most scores of a tile; None takes what suits the device.

    Returns:
        (I,) better and (I,) level captions of each image, (T,) and (T,) images of each caption.
    """
    work = _Tiles(image_IE, caption_TE, found, device)
    images, captions = len(image_IE), len(caption_TE)
    numbers = tile_numbers or (TILE_NUMBERS if device == "cpu" else TILE_NUMBERS_ELSEWHERE)
    high = max(1, min(images, math.isqrt(numbers) if device != "cpu" else MOST_ROWS, numbers))
    wide = max(1, min(captions, numbers // high))
    for top in range(0, images, high):
        for left in range(0, captions, wide):
            work.add(slice(top, min(top + high, images)), slice(left, min(left + wide, captions)))
    return work.i2t_better, work.i2t_level, work.t2i_better, work.t2i_level


def own_scores(image_IE: Floats, caption_TE: Floats, caption_to_image_T: NDArray[np.int64]) -> Any:
    """(T,) float64 scores of the captions with their own images."""
    return pair_scores(image_IE, caption_TE, caption_to_image_T, np.arange(len(caption_to_image_T)))


def pair_scores(
    image_IE: Floats, caption_TE: Floats, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Score some pairs.

    Args:
        image_IE: (I, E).
        caption_TE: (T, E).
        images_P: (P,) rows of images.
        captions_P: (P,) rows of captions.

    Returns:
        (P,) float64 inner products.
    """
    result = np.empty(len(images_P))
    for start in range(0, len(images_P), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        left = image_IE[images_P[some]].astype(np.float64)
        result[some] = np.einsum("pe,pe->p", left, caption_TE[captions_P[some]])
    return result


class _Tiles:
    """The counts so far, and how one more tile is added to them."""

    def __init__(self, image_IE: Floats, caption_TE: Floats, found: Thresholds, device: str):
        self.image, self.caption, self.found = image_IE, caption_TE, found
        self.i2t_better, self.i2t_level = _zeros(len(image_IE)), _zeros(len(image_IE))
        self.t2i_better, self.t2i_level = _zeros(len(caption_TE)), _zeros(len(caption_TE))
        self._by_image, self._starts = group_by_image(found.caption_to_image_T, len(image_IE))
        longest = [_longest(side) for side in (image_IE, caption_TE)]
        self._in_range = all(SHORTEST < length < LONGEST for length in longest)
        # Rounding the inputs, then a sum of E products in any order (Higham 2002, section 3.1).
        error = (image_IE.shape[1] + 3) * UNIT_ROUNDOFF * math.prod(longest) * 1.01
        self._margin = found.tolerance + error
        self._screen: Callable[[slice, slice, Any], Screened] = _NumpyScreen(self)
        if device != "cpu" and self._in_range:
            self._screen = _TorchScreen(self, device)

    def add(self, rows: slice, columns: slice) -> None:
        own = self._by_image[self._starts[rows.start] : self._starts[rows.stop]]
        own = own[(own >= columns.start) & (own < columns.stop)]
        places = (self.found.caption_to_image_T[own] - rows.start, own - columns.start)
        if not self._in_range:
            self._add_exact(rows, columns, places)
            return
        by_row, by_column, unsure_row, unsure_column = self._screen(rows, columns, places)
        size = (rows.stop - rows.start) * (columns.stop - columns.start)
        if max(len(unsure_row), len(unsure_column)) > SHARE_UNDECIDED * size:
            self._add_exact(rows, columns, places)
            return
        self.i2t_better[rows] += by_row
        self.t2i_better[columns] += by_column
        wide = columns.stop - columns.start
        for unsure, better, level, threshold, axis in (
            (unsure_row, self.i2t_better, self.i2t_level, self.found.best_I, 0),
            (unsure_column, self.t2i_better, self.t2i_level, self.found.positive_T, 1),
        ):
            pair = (unsure // wide + rows.start, unsure % wide + columns.start)
            gap = pair_scores(self.image, self.caption, *pair) - threshold[pair[axis]]
            np.add.at(better, pair[axis], gap > self.found.tolerance)
            np.add.at(level, pair[axis], np.abs(gap) <= self.found.tolerance)

    def _add_exact(self, rows: slice, columns: slice, own: Any) -> None:
        """The same in float64 throughout."""
        wide = self.caption[columns].astype(np.float64)
        scores_BC = self.image[rows].astype(np.float64) @ wide.T
        scores_BC[own] = np.nan  # compares false with everything
        best_B1, positive_C = self.found.best_I[rows, None], self.found.positive_T[columns]
        for axis, threshold, better, level, where in (
            (1, best_B1, self.i2t_better, self.i2t_level, rows),
            (0, positive_C, self.t2i_better, self.t2i_level, columns),
        ):
            above = (scores_BC > threshold + self.found.tolerance).sum(axis=axis)
            better[where] += above
            level[where] += (scores_BC >= threshold - self.found.tolerance).sum(axis=axis) - above

    def limits(self, threshold: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Float32 scores below the first are surely worse, above the second surely better."""
        with np.errstate(over="ignore"):  # out of float32's range nothing is screened
            low = (threshold - self._margin).astype(np.float32)
            high = (threshold + self._margin).astype(np.float32)
        return np.nextafter(low, np.float32(-np.inf)), np.nextafter(high, np.float32(np.inf))


class _NumpyScreen:
    """A tile on the CPU. Sums of bytes and `count_nonzero` are far quicker than NumPy's `sum`."""

    def __init__(self, tiles: _Tiles) -> None:
        self._image = np.ascontiguousarray(tiles.image, np.float32) if tiles._in_range else None
        self._caption = np.ascontiguousarray(tiles.caption, np.float32) if tiles._in_range else None
        self._image_limits = tiles.limits(tiles.found.best_I)
        self._caption_limits = tiles.limits(tiles.found.positive_T)

    def __call__(self, rows: slice, columns: slice, own: Any) -> Screened:
        assert self._image is not None
        assert self._caption is not None
        scores_BC = self._image[rows] @ self._caption[columns].T
        scores_BC[own] = -np.inf
        low_B1, high_B1 = (limit[rows, None] for limit in self._image_limits)
        above_BC = scores_BC > high_B1
        by_row = np.array([np.count_nonzero(row) for row in above_BC])
        unsure_row = np.flatnonzero(above_BC ^ (scores_BC >= low_B1))
        low_C, high_C = (limit[columns] for limit in self._caption_limits)
        np.greater(scores_BC, high_C, out=above_BC)
        by_column = above_BC.view(np.uint8).sum(axis=0, dtype=np.uint8)
        unsure_column = np.flatnonzero(above_BC ^ (scores_BC >= low_C))
        return by_row, by_column, unsure_row, unsure_column


class _TorchScreen:
    """A tile on another device."""

    def __init__(self, tiles: _Tiles, device: str) -> None:
        import torch

        def move(values: Any) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

        self._image, self._caption = move(tiles.image), move(tiles.caption)
        self._image_limits = [move(x) for x in tiles.limits(tiles.found.best_I)]
        self._caption_limits = [move(x) for x in tiles.limits(tiles.found.positive_T)]

    def __call__(self, rows: slice, columns: slice, own: Any) -> Screened:
        import torch

        # TF32 and its kin have another error than the bound says.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            scores_BC = self._image[rows] @ self._caption[columns].T
        finally:
            torch.set_float32_matmul_precision(before)
        device = scores_BC.device
        scores_BC[tuple(torch.from_numpy(place).to(device) for place in own)] = -torch.inf
        found: list[Any] = [None] * 4
        limits = (
            [limit[rows, None] for limit in self._image_limits],
            [limit[columns] for limit in self._caption_limits],
        )
        for number, (low, high) in enumerate(limits):
            above = scores_BC > high
            unsure = (above ^ (scores_BC >= low)).flatten().nonzero()[:, 0]
            found[number] = above.sum(dim=1 - number).cpu().numpy()
            found[2 + number] = unsure.cpu().numpy()
        return found[0], found[1], found[2], found[3]


def _zeros(count: int) -> NDArray[np.int64]:
    return np.zeros(count, np.int64)


def _longest(values: Floats) -> float:
    """The greatest length of a row, block by block to spare memory."""
    squares = [
        np.einsum("ne,ne->n", block, block).max()
        for start in range(0, len(values), PAIRS_AT_ONCE)
        for block in [values[start : start + PAIRS_AT_ONCE].astype(np.float64)]
    ]
    return math.sqrt(max(squares, default=0.0))
