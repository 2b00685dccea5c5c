"""Exact ranks of the positives, both ways, from embeddings or from a score matrix.

Nothing here but NumPy: no model, no data set. Training validates with it and every
retrieval figure of `hada.evaluate` is built on it.

Shape letters: I images, T captions, E embedding width, B images of one block, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import group_by_image
from hada.extract.common.errors import NonFiniteError, UsageError
from hada.fuse.ranking.counting import Thresholds, count_better, own_scores

KS = (1, 5, 10)
# A block of a score matrix holds at most this many numbers (float64: 32 MiB).
BLOCK_NUMBERS = 1 << 22
# Scores from embeddings are summed in float64, where the same product rounds differently by
# about 1e-16 in another block: closer than this is a tie. Real scores lie 1e-9 apart or more.
TIE_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Ranks:
    """Where the best positive of every query stands, counted from 0.

    `lo` is its rank if every tie falls in its favour, `hi` if every tie falls against it; they
    are equal where nothing ties. `tied` is how many positives share the best positive's score
    (1 for captions, which have one image each). Entry q of the i2t arrays belongs to image row
    q, entry q of the t2i arrays to caption row q.
    """

    i2t_lo: NDArray[np.int64]
    i2t_hi: NDArray[np.int64]
    i2t_tied: NDArray[np.int64]
    t2i_lo: NDArray[np.int64]
    t2i_hi: NDArray[np.int64]
    t2i_tied: NDArray[np.int64]

    @property
    def i2t(self) -> NDArray[np.float64]:
        """(I,) expected rank of each image's best caption over random orders of its ties."""
        return _expected(self.i2t_lo, self.i2t_hi, self.i2t_tied)

    @property
    def t2i(self) -> NDArray[np.float64]:
        """(T,) expected rank of each caption's image over random orders of its ties."""
        return _expected(self.t2i_lo, self.t2i_hi, self.t2i_tied)

    def i2t_hits(self, k: int) -> NDArray[np.float64]:
        """(I,) chance that an image finds one of its captions among the first `k`."""
        return _hits(self.i2t_lo, self.i2t_hi, self.i2t_tied, k)

    def t2i_hits(self, k: int) -> NDArray[np.float64]:
        """(T,) chance that a caption finds its image among the first `k`."""
        return _hits(self.t2i_lo, self.t2i_hi, self.t2i_tied, k)


def rank_positives(
    image_IE: Any,
    caption_TE: Any,
    caption_to_image: Any,
    *,
    device: str = "cpu",
    block_numbers: int | None = None,
) -> Ranks:
    """Rank the positives under the inner product of two sets of embeddings.

    Entry j of `caption_to_image` is the image row of caption j: with two images of two captions
    each it is `[0, 0, 1, 1]`.
    Embeddings are compared as they are: normalise them first where cosine is meant. Ranks are
    those of float64 scores on every device; see `hada.fuse.ranking.counting`.

    Args:
        image_IE: (I, E) embeddings of images.
        caption_TE: (T, E) embeddings of captions.
        caption_to_image: (T,) image row of each caption; any order, any number of captions per
            image.
        device: `cpu`, `cuda` or `cuda:N`: where the products are computed; ranks are the same.
        block_numbers: Most scores that are held at once; None takes what suits the device.

    Returns:
        Best and worst rank of the positives of each query, from 0; they differ where scores tie.

    Raises:
        UsageError: Shapes do not fit, or an image has no caption.
        NonFiniteError: An embedding is NaN or infinite.

    >>> ranks = rank_positives([[1, 0], [0, 1]], [[1, 0], [0, 1], [1, 0.5]], [0, 1, 1])
    >>> ranks.i2t_lo.tolist(), ranks.i2t_hi.tolist(), ranks.t2i_lo.tolist()
    ([0, 0], [1, 0], [0, 0, 1])
    """
    images, captions = _floats(image_IE), _floats(caption_TE)
    if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
        raise UsageError(
            "embeddings: expected (I, E) and (T, E) of one width E, got "
            f"{images.shape} and {captions.shape}"
        )
    for side, values in (("image", images), ("caption", captions)):
        bad = np.flatnonzero(~_finite_rows(values))
        if bad.size:
            raise NonFiniteError(
                f"{side} embeddings: {bad.size} rows are not finite, the first is row {bad[0]}; "
                "leave out the items that could not be read"
            )
    caption_to_image_T = _checked(caption_to_image, len(images), len(captions))
    positive = own_scores(images, captions, caption_to_image_T)
    tolerance = TIE_TOLERANCE * float(np.abs(positive).max(initial=0.0))
    best, tied = _best(positive, caption_to_image_T, len(images), tolerance)
    found = Thresholds(best, positive, caption_to_image_T, tolerance)
    i2t_lo, i2t_tie, t2i_lo, t2i_tie = count_better(
        images, captions, found, device=device, tile_numbers=block_numbers
    )
    alone = np.ones(len(caption_to_image_T), np.int64)
    return Ranks(i2t_lo, i2t_lo + i2t_tie, tied, t2i_lo, t2i_lo + t2i_tie, alone)


def rank_matrix(
    scores_IT: Any, caption_to_image: Any, *, block_numbers: int = BLOCK_NUMBERS
) -> Ranks:
    """Rank the positives of a whole score matrix; equal numbers tie and nothing else does.

    Args:
        scores_IT: (I, T) scores; higher is more alike.
        caption_to_image: (T,) image row of each caption.
        block_numbers: Most scores that are compared at once.

    Raises:
        UsageError: It is no matrix, or an image has no caption.
        NonFiniteError: A score is NaN.

    >>> recalls(rank_matrix([[0.9, 0.1], [0.2, 0.8]], [0, 1]), ks=(1,))["rsum"]
    200.0
    """
    matrix = _array(scores_IT, None)
    if matrix.ndim != 2:
        raise UsageError(f"scores: expected a matrix (I, T), got shape {matrix.shape}")
    caption_to_image_T = _checked(caption_to_image, *matrix.shape)
    worst = matrix.max(axis=1)  # NaN where a row holds one
    if np.isnan(worst).any():
        row = int(np.argmax(np.isnan(worst)))
        raise NonFiniteError(f"scores: NaN in image row {row}; scores must be numbers")
    return _rank(
        matrix,
        matrix[caption_to_image_T, np.arange(len(caption_to_image_T))],
        caption_to_image_T,
        block_numbers,
    )


def recalls(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, float]:
    """Recall in percent, its sum, and the median and mean rank (counted from 1), both ways.

    Ties are resolved at random and the expectation is reported, so a scorer that returns a
    constant gets chance: `K / T` for captions per image with one caption, never 100 %. Without
    ties these are the usual figures. `medr` is `floor(median) + 1` and `meanr` is `mean + 1`,
    as the field prints them.

    >>> sorted(recalls(rank_matrix([[0.5, 0.5], [0.5, 0.5]], [0, 1]), ks=(1,)).items())[:2]
    [('i2t_R@1', 50.0), ('i2t_meanr', 1.5)]

    Args:
        ranks: Of both ways, as `rank_positives` gives them.
        ks: For which a recall is wanted; `rsum` is the sum over them.

    Returns:
        Name -> value: `i2t_R@K` in percent, `i2t_medr` and `i2t_meanr`, the same for `t2i`, and
        `rsum`.
    """
    result: dict[str, float] = {}
    total = 0.0
    for name, hits, expected in (
        ("i2t", ranks.i2t_hits, ranks.i2t),
        ("t2i", ranks.t2i_hits, ranks.t2i),
    ):
        for k in ks:
            percent = 100.0 * float(hits(k).mean())
            result[f"{name}_R@{k}"] = percent
            total += percent
        result[f"{name}_medr"] = float(math.floor(np.median(expected)) + 1)
        result[f"{name}_meanr"] = float(expected.mean() + 1)
    result["rsum"] = total
    return result


def _rank(
    matrix_IT: NDArray[Any],
    positive: NDArray[Any],
    caption_to_image_T: NDArray[np.int64],
    block_numbers: int,
) -> Ranks:
    """Count, block of images by block, who beats and who ties each query's best positive."""
    images, captions = matrix_IT.shape
    best, tied = _best(positive, caption_to_image_T, images, 0.0)
    i2t_lo, i2t_tie = np.zeros(images, np.int64), np.zeros(images, np.int64)
    t2i_lo, t2i_tie = np.zeros(captions, np.int64), np.zeros(captions, np.int64)
    by_image, starts = group_by_image(caption_to_image_T, images)
    step = max(1, block_numbers // max(captions, 1))
    for first in range(0, images, step):
        rows = slice(first, min(first + step, images))
        own = by_image[starts[rows.start] : starts[rows.stop]]
        # NaN compares false with everything: the positives count neither as better nor as tied.
        block_BT = np.array(matrix_IT[rows], dtype=np.result_type(positive.dtype, np.float32))
        block_BT[caption_to_image_T[own] - first, own] = np.nan
        i2t_lo[rows] = (block_BT > best[rows, None]).sum(axis=1)
        i2t_tie[rows] = (block_BT == best[rows, None]).sum(axis=1)
        t2i_lo += (block_BT > positive).sum(axis=0)
        t2i_tie += (block_BT == positive).sum(axis=0)
    alone = np.ones(captions, np.int64)
    return Ranks(i2t_lo, i2t_lo + i2t_tie, tied, t2i_lo, t2i_lo + t2i_tie, alone)


def _best(
    positive: NDArray[Any], caption_to_image_T: NDArray[np.int64], images: int, tolerance: float
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(I,) the best score of each image's captions, and how many of them share it."""
    best = np.full(images, -np.inf, dtype=positive.dtype)
    np.maximum.at(best, caption_to_image_T, positive)
    # Images without captions are refused in _checked, so every best is a real score.
    as_good = positive >= (best - tolerance)[caption_to_image_T]
    tied = np.bincount(caption_to_image_T[as_good], minlength=images)
    return best, tied


def _hits(
    lo: NDArray[np.int64], hi: NDArray[np.int64], tied: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """(Q,) chance that one of `tied` positives is among the first k, ties in random order.

    Of the tie block of `hi - lo` others and `tied` positives, k - lo places are left. All of
    them go to others with chance C(others, places) / C(others + tied, places).
    """
    if k < 1:
        raise UsageError(f"k: expected at least 1, got {k}")
    others, places = hi - lo, k - lo
    chance = np.where(places > others, 1.0, 0.0)
    for query in np.flatnonzero((places > 0) & (places <= others)):
        n, p, m = int(others[query]), int(tied[query]), int(places[query])
        chance[query] = 1.0 - math.comb(n, m) / math.comb(n + p, m)
    return chance


def _expected(
    lo: NDArray[np.int64], hi: NDArray[np.int64], tied: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(Q,) mean place of the first of `tied` positives among `hi - lo` others at random."""
    return np.asarray(lo + (hi - lo) / (tied + 1.0), dtype=np.float64)


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    """Anything array-like, torch tensors on any device included, as a NumPy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=dtype)


def _floats(values: Any) -> NDArray[Any]:
    """Embeddings in the precision they come in, half precision and whole numbers widened."""
    array = _array(values, None)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether a row is all finite; a sum of finite numbers can overflow, so look twice."""
    with np.errstate(all="ignore"):
        good = np.isfinite(values.sum(axis=1))
    doubtful = np.flatnonzero(~good)
    good[doubtful] = np.isfinite(values[doubtful]).all(axis=1)
    return np.asarray(good)


def _checked(caption_to_image: Any, images: int, captions: int) -> NDArray[np.int64]:
    """`caption_to_image` as (T,) int64, checked against both sides."""
    caption_to_image_T = _array(caption_to_image, np.int64)
    if caption_to_image_T.shape != (captions,):
        raise UsageError(
            f"caption_to_image: expected one entry for each of {captions} captions, "
            f"got shape {caption_to_image_T.shape}"
        )
    if captions and (caption_to_image_T.min() < 0 or caption_to_image_T.max() >= images):
        raise UsageError(
            f"caption_to_image: expected image rows 0 to {images - 1}, "
            f"got {caption_to_image_T.min()} to {caption_to_image_T.max()}"
        )
    counts = np.bincount(caption_to_image_T, minlength=images)
    if images == 0 or (counts == 0).any():
        missing = int(np.argmin(counts)) if images else 0
        raise UsageError(
            f"image row {missing} has no caption, so it has no rank; leave such images out"
        )
    return caption_to_image_T
