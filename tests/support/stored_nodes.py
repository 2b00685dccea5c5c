"""Nodes back from the rows of a store, in which a row's length is its node's weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hada.fuse.scores.item_nodes import ItemNodes


def nodes_of(rows_SW: NDArray[np.float16], lengths: NDArray[np.int64]) -> ItemNodes:
    """Undo `ItemNodes.weighted`, the items' rows one after another."""
    wide = rows_SW.astype(np.float32)
    weights_S = np.linalg.norm(wide, axis=1).astype(np.float32)
    unit = wide / np.maximum(weights_S, np.finfo(np.float32).tiny)[:, None]
    return ItemNodes(unit.astype(np.float16), weights_S, np.asarray(lengths, np.int64))
