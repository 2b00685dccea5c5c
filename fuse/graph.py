"""Which nodes and edges the fusion graph has: the same facts packed, padded and as edge lists.

One graph is one image or one caption as M frozen models see it. Every token of every model is a
node; one node per model is its global node. Edges point from what is read to who reads:

    token  -> global node of its own model      `own`      0.9
    token  -> global nodes of the other models  `other`    0.7
    global -> global                            `between`  1.1
    node   -> itself                            the mean of the node's other incoming edges

The self loops carry that mean, 0 where nothing else comes in, because the paper's layer (PyG's
GATv2Conv) replaces whatever self loops it is given. Tokens hear nobody but themselves.

Shape letters: B graphs of a batch, M models, L padded length, S packed rows, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EdgeWeights:
    """The one number each kind of edge carries; the paper's values by default."""

    own: float = 0.9
    other: float = 0.7
    between: float = 1.1


@dataclass(frozen=True)
class Layout:
    """Where one model's packed tokens of a batch lie once padded to (B, L).

    rows_B: the packed row of each graph's global node.
    tokens_BL: true at real tokens other than the global one.
    slots_S: position b * L + n of each packed row, or None where all lengths are L: then the
        padded form is only another view of the packed one.
    """

    lengths_B: Tensor
    rows_B: Tensor
    tokens_BL: Tensor
    slots_S: Tensor | None

    @classmethod
    def build(cls, lengths: NDArray[np.int64] | Sequence[int], *, global_last: bool) -> Self:
        """The layout of tokens of these lengths, whose global node is the first or last row."""
        lengths_B = np.asarray(lengths, dtype=np.int64)
        if lengths_B.ndim != 1 or lengths_B.size == 0 or lengths_B.min() < 1:
            raise ValueError(f"lengths: every graph has a global node at least, got {lengths_B}")
        longest, ends_B = int(lengths_B.max()), np.cumsum(lengths_B)
        place_L = np.arange(longest)
        real_BL = place_L < lengths_B[:, None]
        globals_B = lengths_B - 1 if global_last else np.zeros_like(lengths_B)
        tokens_BL = real_BL & (place_L != globals_B[:, None])
        even = bool((lengths_B == longest).all())
        return cls(
            torch.from_numpy(lengths_B),
            torch.from_numpy(ends_B - lengths_B + globals_B),
            torch.from_numpy(tokens_BL),
            None if even else torch.from_numpy(np.flatnonzero(real_BL)),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same layout on another device."""
        slots = None if self.slots_S is None else self.slots_S.to(device)
        lengths, rows = self.lengths_B.to(device), self.rows_B.to(device)
        return type(self)(lengths, rows, self.tokens_BL.to(device), slots)

    def pad(self, packed_SX: Tensor) -> Tensor:
        """(S, X) packed rows -> (B, L, X), zeros where there is no token."""
        batch, longest = self.tokens_BL.shape
        if self.slots_S is not None:
            empty = packed_SX.new_zeros(batch * longest, packed_SX.shape[1])
            packed_SX = empty.index_copy(0, self.slots_S, packed_SX)
        return packed_SX.view(batch, longest, -1)


def self_loops(lengths_BM: Tensor, weights: EdgeWeights) -> Tensor:
    """(B, M) weight of each global node's self loop: the mean of its other incoming edges.

    For M = 2: (f1 * own + f2 * other + between) / (f1 + f2 + 1) with f = length - 1.
    """
    others_BM = (lengths_BM - 1).to(torch.float64)
    models = lengths_BM.shape[1]
    all_B1 = others_BM.sum(dim=1, keepdim=True)
    total_BM = (
        others_BM * weights.own
        + (all_B1 - others_BM) * weights.other
        + (models - 1) * weights.between
    )
    return total_BM / (all_B1 + models - 1).clamp_min(1)


def edge_list(
    lengths_BM: Any,
    weights: EdgeWeights,
    *,
    global_last: Sequence[bool] | None = None,
    loops: bool = True,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same graphs as (2, E) rows (from, to) and (E,) weights, for reference and for pictures.

    Nodes are numbered graph after graph and, inside a graph, model after model. With `loops`
    off the self loops are left to the layer, as the paper's code does in effect.

    >>> edge_list([[2, 1]], EdgeWeights())[0].tolist()
    [[0, 1, 1, 2, 0, 1, 2], [2, 0, 2, 0, 0, 1, 2]]
    """
    lengths = np.asarray(lengths_BM, dtype=np.int64)
    last = [False] * lengths.shape[1] if global_last is None else list(global_last)
    edges: list[tuple[int, int]] = []
    values: list[float] = []
    start = 0
    means = self_loops(torch.from_numpy(lengths), weights).numpy()
    for graph, mean in zip(lengths, means, strict=True):
        firsts = start + np.cumsum(graph) - graph
        globals_ = [
            int(f + n - 1 if end else f) for f, n, end in zip(firsts, graph, last, strict=True)
        ]
        for model, (first, count) in enumerate(zip(firsts, graph, strict=True)):
            for node in range(int(first), int(first + count)):
                is_global = node == globals_[model]
                for reader, target in enumerate(globals_):
                    if node != target:
                        own = weights.own if reader == model else weights.other
                        edges.append((node, target))
                        values.append(weights.between if is_global else own)
        for node in range(start, start + int(graph.sum())) if loops else ():
            edges.append((node, node))
            values.append(float(mean[globals_.index(node)]) if node in globals_ else 0.0)
        start += int(graph.sum())
    return np.array(edges, np.int64).reshape(-1, 2).T, np.array(values, np.float64)
