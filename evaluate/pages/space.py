"""A map of the fused space: embeddings on the two axes along which they differ most.

Shape letters: n items, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Pair
from hada.evaluate.methods.late import NodeMethod

POINTS = 5000


@dataclass(frozen=True)
class Map:
    """Items on two axes.

    items: (n,) their rows in the gallery; points: (n, 2); kept: the share of the variance of all
    items of this side that the two axes have.
    """

    items: NDArray[np.int64]
    points: NDArray[np.float64]
    kept: float


def fused_space(method: EmbeddingMethod | NodeMethod) -> Pair:
    """The embeddings whose inner product is a fusion's sum of cosines, each with its share.

    Without what items pay for popularity, and without the nodes, which are no one point.
    """
    if isinstance(method, NodeMethod):
        return method.embedded.cosines()
    return method.pair if method.uncorrected is None else method.uncorrected


def project(values: NDArray[np.float32], *, points: int = POINTS, seed: int = 0) -> Map:
    """The first two principal components of (n, E) embeddings; of many, some are drawn.

    The axes are fitted on all items. Their signs are fixed (the largest loading is positive), so
    that a page looks the same when it is made again.
    """
    centred = values.astype(np.float64)
    centred -= centred.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    top = axes[:, ::-1][:, :2]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), np.arange(top.shape[1])])
    items = np.arange(len(values))
    if len(items) > points:
        items = np.sort(np.random.default_rng(seed).permutation(items)[:points])
    found = np.zeros((len(items), 2))
    found[:, : top.shape[1]] = centred[items] @ top
    total = float(variances.sum())
    return Map(items, found, float(variances[-2:].sum()) / total if total > 0 else 0.0)
