"""Edges against the golden lists, layouts against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_golden import load_npz

from hada.fuse.graph import EdgeWeights, Layout, edge_list, self_loops

DIRECTED = [
    "hada_m.directed.tiny",
    "hada_m.directed.min2",
    "hada_m.directed.real",
    "lavis.directed.tiny",
    "lavis.directed.min2",
    "lavis.directed.real577",
    "lavis.directed.tiny.wfsl_wcsl_2_3",
]


def as_map(index, attr):
    pairs = list(zip(*index.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, attr.tolist(), strict=True))


@pytest.mark.parametrize("side", ["img", "cap"])
@pytest.mark.parametrize("case", DIRECTED)
def test_edges_equal_the_golden_ones(case, side):
    golden = load_npz("edges.npz")
    key = f"{case}.{side}"
    want = as_map(golden[f"{key}.effective_edge_index"], golden[f"{key}.effective_edge_attr"])
    lengths = golden[f"{key}.n"][None]
    got = as_map(*edge_list(lengths, EdgeWeights()))
    assert got.keys() == want.keys()
    # The authors' layer sums hundreds of float32 edges one by one; ours is summed in float64.
    assert max(abs(got[e] - want[e]) for e in want) < 1e-5


def test_self_loops_are_the_mean_of_the_other_incoming_edges():
    lengths, weights = [[3, 1, 4], [1, 1, 1]], EdgeWeights(own=0.9, other=0.5, between=2.0)
    index, attr = edge_list(lengths, weights, loops="none")
    loops = self_loops(torch.tensor(lengths), weights)
    for node, value in zip([0, 3, 4, 8, 9, 10], loops.flatten().tolist(), strict=True):
        assert value == pytest.approx(attr[index[1] == node].mean())
    assert self_loops(torch.tensor([[1]]), weights).tolist() == [[0.0]]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("lengths", [[3, 1, 2], [2, 2], [1, 1]])
def test_layout(lengths, last):
    layout = Layout.build(lengths, global_last=last)
    packed = torch.arange(1.0, sum(lengths) + 1)[:, None]
    padded = layout.pad(packed)
    start = 0
    for graph, count in enumerate(lengths):
        rows = list(range(start, start + count))
        assert padded[graph, :count, 0].tolist() == [r + 1 for r in rows]
        assert not padded[graph, count:].any()
        own = rows[-1] if last else rows[0]
        assert layout.rows_B[graph] == own
        kept = [r for r in rows if r != own]
        assert (padded[graph, layout.tokens_BL[graph], 0] - 1).tolist() == kept
        start += count
    assert (layout.slots_S is None) == (len(set(lengths)) == 1)


def test_a_graph_without_nodes_is_refused():
    with pytest.raises(ValueError, match="global node"):
        Layout.build(np.array([2, 0]), global_last=False)
