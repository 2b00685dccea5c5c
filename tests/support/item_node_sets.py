"""Nodes of a few items, drawn."""

from __future__ import annotations

import numpy as np

from hada.fuse.scores.item_nodes import ItemNodes


def made(items: int, longest: int = 5, seed: int = 0) -> ItemNodes:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, items)
    vectors = draw.normal(size=(lengths.sum(), 8))
    weights = [part / part.sum() for part in (draw.random(n) + 0.1 for n in lengths)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return ItemNodes(unit.astype(np.float16), np.concatenate(weights).astype("f4"), lengths)
