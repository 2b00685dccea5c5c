"""Reciprocal-rank fusion: models vote with the ranks they give, not with their scores.

Shape letters: I images, T captions, E embedding width, Q queries of a block, G gallery items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, fitted_of
from hada.evaluate.methods.seen import Fitted
from hada.extract.common.arrays import group_by_image
from hada.fuse.ranking.ranks import Ranks

RRF_CONSTANT = 60.0
BLOCK_NUMBERS = 1 << 21
# Sums of the same reciprocals in another order differ by about 1e-17.
SAME = 1e-14


def fused_ranks(
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    caption_to_image: NDArray[np.int64],
    constant: float = RRF_CONSTANT,
) -> Ranks:
    """Ranks of the positives under the fused score, in blocks of queries.

    Args:
        pairs: Per model its (I, E) image and (T, E) caption embeddings.
        caption_to_image: Entry j is the image row of caption j, e.g. `[0, 0, 1, 1]`.
        constant: What is added to a rank (from 1) before its reciprocal is taken.
    """
    images, captions = len(pairs[0][0]), len(caption_to_image)
    by_image, bounds = group_by_image(caption_to_image, images)
    positives = [by_image[bounds[i] : bounds[i + 1]] for i in range(images)]
    i2t = _one_way([(image, caption) for image, caption in pairs], positives, constant)
    back = [np.array([i]) for i in caption_to_image]
    t2i = _one_way([(caption, image) for image, caption in pairs], back, constant)
    assert len(t2i[0]) == captions
    return Ranks(*i2t, *t2i)


def ranks_of_scores(scores_QG: NDArray[np.float32]) -> NDArray[np.int64]:
    """(Q, G) ranks of all items, from 1; equal scores share the best of their ranks.

    >>> ranks_of_scores(np.array([[0.1, 0.9, 0.9]], np.float32)).tolist()
    [[3, 1, 1]]
    """
    order = np.argsort(-scores_QG, axis=1)
    sorted_QG = np.take_along_axis(scores_QG, order, axis=1)
    new = np.ones(scores_QG.shape, bool)
    new[:, 1:] = sorted_QG[:, 1:] != sorted_QG[:, :-1]
    rank_of = np.maximum.accumulate(np.where(new, np.arange(1, scores_QG.shape[1] + 1), 0), axis=1)
    result = np.empty_like(rank_of)
    np.put_along_axis(result, order, rank_of, axis=1)
    return result


def _one_way(
    sides: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    positives: Sequence[NDArray[np.int64]],
    constant: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(Q,) best rank, worst rank and tied positives; see `Ranks`."""
    queries, gallery = len(sides[0][0]), len(sides[0][1])
    lo, hi, tied = (np.zeros(queries, np.int64) for _ in range(3))
    step = max(1, BLOCK_NUMBERS // gallery)
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        total = np.zeros((rows.stop - rows.start, gallery))
        for query, items in sides:
            scores = query[rows].astype(np.float32) @ items.astype(np.float32, copy=False).T
            total += 1.0 / (constant + ranks_of_scores(scores))
        for row in range(rows.start, rows.stop):
            score = total[row - start]
            own = score[positives[row]]
            best = own.max()
            level = np.abs(own - best) <= SAME
            better = int((score > best + SAME).sum())
            equal = int((np.abs(score - best) <= SAME).sum())
            tied[row] = level.sum()
            lo[row], hi[row] = better, better + equal - tied[row]
    return lo, hi, tied


@dataclass(frozen=True)
class RankFusion:
    """Reciprocal-rank fusion of other methods; it has ranks, but no embeddings of its own.

    score = sum over models of 1 / (constant + rank), ranks counted from 1 (Cormack, Clarke and
    Buettcher, SIGIR 2009, with their constant of 60).
    """

    models: tuple[EmbeddingMethod, ...]
    constant: float = RRF_CONSTANT
    name: str = "reciprocal ranks"
    kind: str = "rrf"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """How it was made."""
        return f"sum of 1 / ({self.constant:g} + rank), nothing trained"

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """What its models were fitted on."""
        return fitted_of(self.models)

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Where the best positive of every query stands. Always on the CPU: it sorts."""
        return fused_ranks([method.pair for method in self.models], caption_to_image, self.constant)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> RankFusion:
        """The same method on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(self, models=tuple(method.part(images, captions) for method in self.models))
