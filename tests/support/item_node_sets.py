"""Nodes of a few items, drawn, and nodes back from the rows of a store."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hada.fuse.scores.item_nodes import ItemNodes


def made(items: int, longest: int = 5, seed: int = 0) -> ItemNodes:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, items)
    vectors = draw.normal(size=(lengths.sum(), 8))
    weights = [part / part.sum() for part in (draw.random(n) + 0.1 for n in lengths)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return ItemNodes(unit.astype(np.float16), np.concatenate(weights).astype("f4"), lengths)


def nodes_of(rows_SW: NDArray[np.float16], lengths: NDArray[np.int64]) -> ItemNodes:
    """Undo `ItemNodes.weighted`: a row's length is its node's weight."""
    wide = rows_SW.astype(np.float32)
    weights_S = np.linalg.norm(wide, axis=1).astype(np.float32)
    unit = wide / np.maximum(weights_S, np.finfo(np.float32).tiny)[:, None]
    return ItemNodes(unit.astype(np.float16), weights_S, np.asarray(lengths, np.int64))
