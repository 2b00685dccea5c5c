"""Edges against the golden lists, layouts against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_golden import load_npz
from golden_graphs import CASES, LOOPS, as_map

from hada.fuse.batch import Layout
from hada.fuse.network.graph import edge_list, self_loops
from hada.fuse.settings import NO_EDGE, EdgeWeights


@pytest.mark.parametrize("side", ["img", "cap"])
@pytest.mark.parametrize("case", CASES)
def test_edges_equal_the_golden_ones(case, side):
    golden = load_npz("edges.npz")
    key = f"{case}.{side}"
    want = as_map(golden[f"{key}.effective_edge_index"], golden[f"{key}.effective_edge_attr"])
    lengths = golden[f"{key}.n"][None]
    weights = EdgeWeights(
        undirected="undirected" in case, tokens=0.5 if "wffx0.5" in case else NO_EDGE
    )
    got = as_map(*edge_list(lengths, weights))
    assert got.keys() == want.keys()
    # The authors' layer sums hundreds of float32 edges one by one; ours is summed in float64.
    assert max(abs(got[e] - want[e]) for e in want) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_given_edges_equal_the_golden_ones(case):
    """The lists before any layer touches them, self loops with the authors' weights included."""
    golden = load_npz("edges.npz")
    loops = max((k for k in LOOPS if case.startswith(k)), key=len)
    weights = EdgeWeights(
        undirected="undirected" in case,
        tokens=0.5 if "wffx0.5" in case else NO_EDGE,
        loop_token=LOOPS[loops][0],
        loop_global=LOOPS[loops][1],
    )
    for side in ("img", "cap"):
        key = f"{case}.{side}"
        want = as_map(golden[f"{key}.edge_index"], golden[f"{key}.edge_attr"])
        got = as_map(*edge_list(golden[f"{key}.n"][None], weights, loops="given"))
        assert got == pytest.approx(want, abs=1e-6)


def test_a_weight_of_minus_one_draws_no_edges():
    index, values = edge_list([[3, 2]], EdgeWeights(other=NO_EDGE, between=NO_EDGE), loops="none")
    assert index.tolist() == [[1, 2, 4], [0, 0, 3]]
    assert values.tolist() == [0.9] * 3


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


def test_joined_tokens_meet_those_of_the_other_models_in_their_own_graph():
    lengths, last = np.array([[3, 2, 4], [1, 3, 2], [2, 2, 1]]), (False, True, False)
    weights = EdgeWeights(own=-1, other=-1, between=-1, tokens=0.5)
    edges, values = edge_list(lengths, weights, global_last=last, loops="none")
    tokens, start = [], 0
    for graph in range(3):
        for model in range(3):
            count = lengths[graph, model]
            own = start + (count - 1 if last[model] else 0)
            tokens += [(node, graph, model) for node in range(start, start + count) if node != own]
            start += count
    want = {
        (a, b) for a, g, m in tokens for b, h, n in tokens if g == h and m != n
    }  # every token of a graph to all tokens of its other models
    found = list(zip(*edges.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == want
    assert set(values.tolist()) == {0.5}
