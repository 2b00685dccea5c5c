"""Where each dropout acts, how much, and what layers begin with. Golden vectors have dropout 0."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from fuse_fakes import paper_branch
from torch import nn

from hada.fuse.batch import Features, Layout, ModelShape
from hada.fuse.network.attention import GlobalAttention
from hada.fuse.network.fuser import Branch, GraphLayer
from hada.fuse.network.inputs import PUBLISHED_MEAN, PUBLISHED_STD, prepare
from hada.fuse.network.layers import ACTIVATIONS, Dense, Hidden, dropout
from hada.fuse.network.packed import PackedGraph
from hada.fuse.settings import EdgeWeights

P = 0.4


def seeded(make):
    """The same draws for two ways of computing one thing."""
    torch.manual_seed(7)
    return make()


def standardised(y, along):
    spread = y.var(along, unbiased=False, keepdim=True) + 1e-5
    return (y - y.mean(along, keepdim=True)) / spread.sqrt()


@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_a_last_layer_drops_out_where_its_order_says(norm):
    torch.manual_seed(0)
    layer, x = Dense(6, 5, norm, P).train(), torch.randn(50, 6)
    nn.init.normal_(layer.linear.bias)

    def slow():
        if norm == "none":
            return layer.linear(dropout(x, P, True))
        out = layer.linear(x)
        return dropout(standardised(out, 0) if norm == "batch" else out, P, True)

    torch.testing.assert_close(seeded(lambda: layer(x)), seeded(slow), atol=1e-5, rtol=1e-5)
    layer.eval()
    plain = layer.linear(x)
    want = plain if layer.norm is None else layer.norm(plain)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_a_hidden_layer_has_the_published_order(norm, activation):
    acts = {
        "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
        "relu": lambda x: x.clamp_min(0),
        "swish": lambda x: x * torch.sigmoid(x),
        "tanh": torch.tanh,
        "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
        "id": lambda x: x,
    }
    torch.manual_seed(1)
    layer, x, act = Hidden(6, 5, norm, P, activation).train(), torch.randn(40, 6), acts[activation]

    def normed(y):
        return standardised(y, 0 if norm == "batch" else 1)

    def slow():
        if norm == "none":
            return normed(act(layer.linear(dropout(x, P, True))))
        return dropout(act(normed(layer.linear(x))), P, True)

    torch.testing.assert_close(seeded(lambda: layer(x)), seeded(slow), atol=1e-5, rtol=1e-5)
    assert torch.equal(layer.eval()(x), layer(x))


def test_attention_drops_out_its_weights():
    torch.manual_seed(2)
    attention = GlobalAttention(8, 2, 3, EdgeWeights(), P).train()
    nn.init.normal_(attention.bias)
    layouts = [Layout.build([3, 2], global_last=False), Layout.build([1, 4], global_last=True)]
    nodes = [torch.randn(5, 8), torch.randn(5, 8)]
    found = seeded(lambda: attention(nodes, layouts))
    alpha, key, keys = attention.attend(nodes, layouts)
    kept = seeded(lambda: F.dropout(alpha, P))
    torch.testing.assert_close(found, attention._gather(kept, key, keys) + attention.bias)
    assert not torch.allclose(found, attention.eval()(nodes, layouts))


def config(**changes):
    shapes = (
        ModelShape(node_width=5, embedding_width=4),
        ModelShape(node_width=6, embedding_width=4),
    )
    plain = {"node_width": 8, "heads": 2, "head_width": 4, "graph_width": 8, "out_width": 7}
    dropouts = {"dropout_nodes": 0.1, "dropout_graph": 0.2, "dropout_head": 0.3}
    return paper_branch(models=shapes, **(plain | dropouts | changes))


@pytest.mark.parametrize("norm", ["batch", "none", "layer"])
def test_a_branch_has_each_dropout_in_its_place(norm):
    branch = Branch(config(norm=norm, node_hidden=(9,), head_hidden=(11,)))
    assert [p.dropout for p in branch.project] == [0.1, 0.1]
    assert [p.before[0].dropout for p in branch.project] == [0.1, 0.1]
    assert (branch.graph.attention.dropout, branch.graph.mix.dropout) == (0.2, 0.2)
    assert (branch.head.dropout, branch.head.before[0].dropout) == (0.3, 0.3)
    deep = Branch(config(norm=norm, graph_hidden=(8,))).graph
    assert [(layer.conv.dropout, layer.mix.dropout) for layer in deep.layers] == [(0.2, 0.2)] * 2


def test_heads_of_other_nodes_are_dropped_or_scaled_up():
    """BatchNorm's other rows: each head of a node hears itself with weight 0 or 1 / (1 - p)."""
    torch.manual_seed(3)
    graph = Branch(config(dropout_graph=P)).graph.train()
    layouts = [Layout.build([200], global_last=False), Layout.build([1], global_last=False)]
    nodes = [torch.randn(200, 8), torch.randn(1, 8)]
    nn.init.zeros_(graph.mix.linear.bias)
    with torch.no_grad():
        graph.mix.linear.weight.zero_()
        graph.mix.linear.weight[:, :4] = 1  # the sum of the first head's keys
        found = torch.cat(graph._others(nodes, layouts))[:, 0]
        whole = graph.attention.lin_l(nodes[0][1:])[:, :4].sum(1) / (1 - P)
    dropped = found.abs() < 1e-6
    assert 0.3 < float(dropped.float().mean()) < 0.5
    close = (found[:, None] - whole[None, :]).abs().min(1).values < 1e-4
    assert bool((dropped | close).all())


def test_layers_begin_as_published():
    """Glorot as PyG draws it, the last two sizes being the fans; He for the linear layers."""
    torch.manual_seed(4)
    attention = GlobalAttention(64, 4, 96, EdgeWeights(), 0.0)
    for weight, fans in (
        (attention.lin_l.weight, 64 + 384),
        (attention.lin_r.weight, 64 + 384),
        (attention.lin_edge.weight, 1 + 384),
        (attention.att, 4 + 96),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.97 * bound < float(weight.detach().abs().max()) <= bound
    assert float(attention.bias.detach().abs().max()) == 0
    for linear in (Dense(64, 300, "none", 0).linear, Hidden(64, 300, "none", 0, "gelu").linear):
        assert float(linear.weight.detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.03)


def test_published_inputs_are_standardised_by_the_authors_numbers():
    x = torch.tensor([[3.0, 4.0]])
    found = prepare(x, "published")
    want = (torch.tensor([[0.6, 0.8]]) + 0.0006847491604276001) / 0.036077868193387985
    torch.testing.assert_close(found, want)
    assert (PUBLISHED_MEAN, PUBLISHED_STD) == (-0.0006847491604276001, 0.036077868193387985)


@pytest.mark.parametrize(
    "edges",
    [
        {"own": -1.0},
        {"other": -1.0},
        {"between": -1.0},
        {"tokens": 0.5},
        {"undirected": True},
    ],
)
def test_graphs_that_the_dense_form_cannot_draw_are_packed(edges):
    plain = Branch(config())
    assert isinstance(plain.graph, GraphLayer)
    torch.manual_seed(5)
    branch = Branch(config(edges=EdgeWeights(**edges), norm="none")).eval()
    assert isinstance(branch.graph, PackedGraph)
    counts = [[3, 2], [2, 4]]
    layouts = tuple(Layout.build(n, global_last=False) for n in counts)
    nodes = (torch.randn(5, 5), torch.randn(6, 6))
    batch = Features(nodes, layouts, (torch.randn(2, 4), torch.randn(2, 4)))
    moved = list(nodes)
    moved[1] = nodes[1].clone()
    moved[1][1] += 1.0  # the second model's token of the first graph
    before = branch.graph(branch.nodes(batch), layouts)
    after = branch.graph(branch.nodes(Features(tuple(moved), layouts, batch.embeddings)), layouts)
    hears = [not torch.allclose(before[0, m], after[0, m]) for m in (0, 1)]
    assert hears == [edges.get("other") != -1, edges.get("own") != -1]
