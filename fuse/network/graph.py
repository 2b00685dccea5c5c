"""Nodes and edges of the fusion graph: packed, padded and as edge lists.

One graph is one image or one caption as M frozen models see it. Every token of every model is a
node; one node per model is its global node. Edges point from what is read to who reads:

    token  -> global node of its own model      `own`      0.9
    token  -> global nodes of the other models  `other`    0.7
    global -> global                            `between`  1.1
    node   -> itself                            the mean of the node's other incoming edges

The self loops carry that mean, 0 where nothing else comes in, because the paper's layer (PyG's
GATv2Conv) replaces whatever self loops it is given; its GCN and Transformer layers use the given
ones. Tokens hear nobody but themselves, unless the graph is undirected (then they hear the global
nodes, with the same weights) or tokens of different models are joined to each other.

Shape letters: B graphs of a batch, M models, L padded length, S packed rows, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.fuse.settings import NO_EDGE, EdgeWeights

Loops = Literal["mean", "given", "none"]


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
    loops: Loops = "mean",
    starts_BM: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The same graphs as (2, E) rows (from, to) and (E,) weights.

    Nodes are numbered graph after graph and, inside a graph, model after model, unless
    `starts_BM` says where each model's nodes of each graph begin. Self loops are what GATv2
    makes of them ("mean"), the `given` ones, or left out.

    >>> edge_list([[2, 1]], EdgeWeights())[0].tolist()
    [[1, 1, 0, 2, 0, 1, 2], [0, 2, 2, 0, 0, 1, 2]]
    """
    lengths = np.asarray(lengths_BM, dtype=np.int64)
    models = lengths.shape[1]
    if starts_BM is None:
        starts_BM = (lengths.cumsum() - lengths.ravel()).reshape(lengths.shape)
    last_M = np.zeros(models, bool) if global_last is None else np.asarray(global_last)
    globals_BM = starts_BM + np.where(last_M, lengths - 1, 0)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], float]] = []

    def draw(tail: NDArray[np.int64], head: NDArray[np.int64], weight: float) -> None:
        if weight != NO_EDGE:
            parts.append((tail, head, weight))

    tokens = []
    for model in range(models):
        count = lengths[:, model] - 1
        graph = np.repeat(np.arange(len(lengths)), count)
        place = np.arange(len(graph)) - np.repeat(count.cumsum() - count, count)
        tokens.append((starts_BM[graph, model] + place + (not last_M[model]), graph))
        for reader in range(models):
            node, target = tokens[model][0], globals_BM[graph, reader]
            weight = weights.own if reader == model else weights.other
            draw(node, target, weight)
            if weights.undirected:
                draw(target, node, weight)
    for a, b in permutations(range(models), 2):
        draw(globals_BM[:, a], globals_BM[:, b], weights.between)
        if weights.tokens != NO_EDGE:
            (node_a, graph_a), (node_b, graph_b) = tokens[a], tokens[b]
            met, heads = _every_pair(graph_a, graph_b, len(lengths))
            draw(np.repeat(node_a, met), node_b[heads], weights.tokens)
    if loops == "given":
        for node, _ in tokens:
            draw(node, node, weights.loop_token)
        draw(globals_BM.ravel(), globals_BM.ravel(), weights.loop_global)
    empty = np.empty(0, np.int64)
    tail = np.concatenate([empty, *(part[0] for part in parts)])
    head = np.concatenate([empty, *(part[1] for part in parts)])
    values = np.repeat([part[2] for part in parts], [len(part[0]) for part in parts])
    if loops == "mean":
        nodes = np.sort(np.concatenate([globals_BM.ravel(), *(node for node, _ in tokens)]))
        means = _mean_incoming(head, values, int(nodes.max()) + 1)
        tail, head = np.concatenate([tail, nodes]), np.concatenate([head, nodes])
        values = np.concatenate([values, means[nodes]])
    return np.stack([tail, head]), np.asarray(values, np.float64)


def _every_pair(
    graph_a: NDArray[np.int64], graph_b: NDArray[np.int64], graphs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair each entry of `graph_a` with all entries of the sorted `graph_b` of the same graph.

    Returns:
        How many each entry of `graph_a` meets, and the positions in `graph_b`, entry after entry.
    """
    count = np.bincount(graph_b, minlength=graphs)
    first = count.cumsum() - count
    met = count[graph_a]
    place = np.arange(met.sum()) - np.repeat(met.cumsum() - met, met)
    return met, np.repeat(first[graph_a], met) + place


def _mean_incoming(
    head: NDArray[np.int64], values: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """(size,) mean weight of the edges into each node; 0 where there are none."""
    incoming = np.bincount(head, minlength=size)
    return np.asarray(np.bincount(head, values, minlength=size) / np.maximum(incoming, 1))
