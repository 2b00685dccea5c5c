"""How much each score counts in retrieval, chosen on a validation split.

A run's score is a weighted sum of cosines: the fused one and the frozen models' own. The weights
are a handful of numbers, so they are searched, one at a time, for the best RSum.

Shape letters: I images, T captions, K scores (the fused one first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hada.fuse.ranking import rank_matrix, recalls

if TYPE_CHECKING:
    from hada.fuse.embed import Embedded

STEPS = 10  # shares are multiples of a tenth of what is there to share
SWEEPS = 2
MOST_IMAGES = 1000  # more are not needed to place a handful of numbers


def tuned_shares(found: Embedded) -> tuple[float, ...]:
    """(K,) shares that sum to 1, with the best RSum that the search finds.

    From equal shares, each score's share is tried at every tenth while the others keep their
    proportions; twice over. The result is never worse than equal shares on the images it looks
    at, which are at most 1,000 evenly spread ones with all their captions.
    """
    images = len(found.fused_image)
    kept = np.unique(np.linspace(0, images - 1, min(images, MOST_IMAGES)).astype(np.int64))
    captions = np.flatnonzero(np.isin(found.caption_to_image, kept))
    owner = np.searchsorted(kept, found.caption_to_image[captions])
    pairs = [(found.fused_image, found.fused_caption), *found.own]
    scores_KIT = [image[kept] @ caption[captions].T for image, caption in pairs]
    shares = np.full(len(pairs), 1 / len(pairs))
    best = _rsum(scores_KIT, shares, owner)
    for _ in range(SWEEPS):
        for score in range(len(pairs)):
            for tenth in range(STEPS + 1):
                tried = _with_share(shares, score, tenth / STEPS)
                rsum = _rsum(scores_KIT, tried, owner)
                if rsum > best:
                    best, shares = rsum, tried
    return tuple(float(share) for share in shares)


def _with_share(shares: NDArray[np.float64], score: int, share: float) -> NDArray[np.float64]:
    """The same shares with one of them replaced, the others scaled so that all sum to 1."""
    rest = np.delete(shares, score)
    total = rest.sum()
    rest = rest / total if total > 0 else np.full(len(rest), 1 / max(len(rest), 1))
    return np.insert(rest * (1 - share), score, share)


def _rsum(
    scores_KIT: Sequence[NDArray[np.float32]], shares: NDArray[np.float64], owner: NDArray[np.int64]
) -> float:
    total = sum(
        np.float32(share) * scores for share, scores in zip(shares, scores_KIT, strict=True)
    )
    return recalls(rank_matrix(total, owner))["rsum"]
