"""Weights of patches and words as heat: how many times a uniform weight, on one scale for all.

A scale of its own for every image would show noise as strongly as a clear answer. Here a patch with
the weight that each would have if all had the same is clear, and one with eight times that is full.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Times uniform at which heat is full: three doublings.
FULL = 8.0
SCALE = (1, 2, 4, 8)


def times_uniform(
    weights: NDArray[np.float64], counts: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Weights as multiples of what each would be if all were the same.

    Args:
        weights: Of patches in any shape, or (W,) of words.
        counts: (W,) tokens of each word; a word of three is due three times a uniform weight.

    Returns:
        The same shape; weights that sum to 0 give zeros.

    >>> times_uniform(np.array([0.1, 0.3])).round(6).tolist()
    [0.5, 1.5]
    >>> times_uniform(np.array([0.3, 0.1]), np.array([3, 1])).round(6).tolist()
    [1.0, 1.0]
    """
    total = float(weights.sum())
    if total <= 0:
        return np.zeros_like(weights)
    due = np.ones(weights.shape) if counts is None else counts.astype(np.float64)
    return np.asarray(weights / total * due.sum() / due)


def heat(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heat from 0 to 1 of multiples of a uniform weight; the same share for every doubling.

    >>> heat(np.array([0.0, 0.5, 1.0, 2.0, 8.0, 64.0])).round(2).tolist()
    [0.0, 0.0, 0.0, 0.33, 1.0, 1.0]
    """
    return np.asarray(np.clip(np.log2(np.maximum(times, 1.0)) / np.log2(FULL), 0.0, 1.0))
