"""Graphs on edge lists: equal to the dense form where both hold, to plain formulas elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_fakes import paper_branch
from golden_graphs import golden_two_layers
from small_batches import random_features, shapes

from hada.extract.common.errors import UsageError
from hada.fuse.batch import Features, Layout, ModelShape
from hada.fuse.network.fuser import Branch
from hada.fuse.network.graph import edge_list
from hada.fuse.network.packed import PackedGraph
from hada.fuse.settings import NO_EDGE, EdgeWeights

LENGTHS = [[2, 3, 1], [1, 4, 2], [5, 1, 1]]
SMALL = {"node_width": 6, "heads": 3, "head_width": 5, "graph_width": 6, "out_width": 7}


def branch_of(models=2, **changes):
    torch.manual_seed(0)
    config = paper_branch(models=shapes(models), **{**SMALL, **changes})
    return Branch(config).double(), as_double(random_features(config, LENGTHS[:models]))


def as_double(batch):
    return Features(
        tuple(x.double() for x in batch.nodes),
        batch.layouts,
        tuple(None if x is None else x.double() for x in batch.embeddings),
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("models", [1, 2, 3])
def test_one_directed_layer_equals_the_dense_form(models, norm, training):
    branch, batch = branch_of(models, norm=norm)
    packed = PackedGraph(branch.config).double()
    own = branch.graph.state_dict()
    renamed = {f"layers.0.{k.replace('attention.', 'conv.')}": v.clone() for k, v in own.items()}
    packed.load_state_dict(renamed)
    branch.train(training)
    packed.train(training)
    nodes = [x.detach().requires_grad_() for x in branch.nodes(batch)]
    got, want = packed(nodes, batch.layouts), branch.graph(nodes, batch.layouts)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(got)
    a = torch.autograd.grad((got * weights).sum(), [*nodes, *packed.parameters()])
    b = torch.autograd.grad((want * weights).sum(), [*nodes, *branch.graph.parameters()])
    names = dict(zip([n for n, _ in branch.graph.named_parameters()], b[models:], strict=True))
    for x, y in zip(a[:models], b[:models], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)
    for (name, _), x in zip(packed.named_parameters(), a[models:], strict=True):
        ours = name.removeprefix("layers.0.").replace("conv.", "attention.")
        torch.testing.assert_close(x, names[ours], rtol=1e-8, atol=1e-10)
    for x, y in zip(packed.buffers(), branch.graph.buffers(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_one_undirected_layer_says_the_same_of_the_global_nodes():
    branch, batch = branch_of(norm="none")
    packed, _ = branch_of(norm="none", edges=EdgeWeights(undirected=True))
    assert isinstance(packed.graph, PackedGraph)
    state = branch.state_dict()
    packed.load_state_dict({k.replace("graph.attention", "graph.layers.0.conv")
                             .replace("graph.mix", "graph.layers.0.mix"): v
                            for k, v in state.items()})  # fmt: skip
    torch.testing.assert_close(packed(batch), branch(batch), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("kind", ["hada_m", "lavis"])
def test_golden_two_layers(kind, skip):
    for mode, (got, want) in golden_two_layers(kind, skip).items():
        # BatchNorm over the four rows of the last layer magnifies what float32 rounds.
        limit = 1e-4 if (kind, mode) == ("hada_m", "train") else 1e-5
        np.testing.assert_allclose(got, want, atol=limit)


def dense_matrix(lengths, weights, loops):
    index, values = edge_list(lengths, weights, loops=loops)
    size = int(np.sum(lengths))
    matrix = torch.zeros(size, size, dtype=torch.float64)
    there = torch.zeros(size, size, dtype=torch.bool)
    tail, head = torch.from_numpy(index)
    matrix[head, tail], there[head, tail] = torch.from_numpy(values), True
    return matrix, there


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("tokens", [NO_EDGE, 0.5])
@pytest.mark.parametrize("kind", ["gcn", "transformer", "gatv2"])
def test_convolutions_equal_their_formulas(kind, tokens, undirected):
    weights = EdgeWeights(undirected=undirected, tokens=tokens)
    lengths = [[3, 2]]
    models = tuple(ModelShape(node_width=6, embedding_width=None) for _ in range(2))
    config = paper_branch(models=models, convolution=kind, norm="none", edges=weights, **SMALL)
    torch.manual_seed(0)
    graph = PackedGraph(config).double()
    conv, mix = graph.layers[0].conv, graph.layers[0].mix
    nodes = [torch.randn(n, 6, dtype=torch.float64) for n in lengths[0]]
    layouts = [Layout.build([n], global_last=False) for n in lengths[0]]
    h = torch.cat(nodes)
    edge, there = dense_matrix(lengths, weights, "mean" if kind == "gatv2" else "given")
    if kind == "gcn":
        degree = edge.sum(1).rsqrt()
        want = (degree[:, None] * edge * degree) @ h @ conv.lin.weight.T + conv.bias
    else:
        parts = []
        for head in range(3):
            rows = slice(5 * head, 5 * head + 5)
            if kind == "gatv2":
                key = (h @ conv.lin_l.weight.T + conv.lin_l.bias)[:, rows]
                query = (h @ conv.lin_r.weight.T + conv.lin_r.bias)[:, rows]
                z = query[:, None] + key + edge[..., None] * conv.lin_edge.weight[rows, 0]
                score = torch.nn.functional.leaky_relu(z, 0.2) @ conv.att[0, head]
                value = key.expand(5, 5, 5)
            else:
                extra = edge[..., None] * conv.lin_edge.weight[rows, 0]
                query, key, value = (
                    (h @ lin.weight.T + lin.bias)[:, rows]
                    for lin in (conv.lin_query, conv.lin_key, conv.lin_value)
                )
                score = (query[:, None] * (key + extra)).sum(-1) / 5**0.5
                value = value + extra
            alpha = score.masked_fill(~there, -torch.inf).softmax(1)
            parts.append(torch.einsum("ij,ijc->ic", alpha, value))
        out = torch.cat(parts, 1)
        out = out + (conv.bias if kind == "gatv2" else h @ conv.lin_skip.weight.T)
        want = mix(out + (0 if kind == "gatv2" else conv.lin_skip.bias))
    torch.testing.assert_close(graph(nodes, layouts)[0], want[[0, 3]], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kind", ["gcn", "transformer", "gatv2"])
def test_deep_graphs_of_three_models_learn(kind, norm):
    """Every parameter is used, and one graph's result is its own, whichever batch it is in."""
    branch, batch = branch_of(
        3, convolution=kind, norm=norm, graph_hidden=(6,), skip=True, node_hidden=(4,)
    )
    (branch(batch) * torch.randn(3, 7)).sum().backward()
    # A key's bias shifts all scores of a Transformer layer alike: its gradient is 0, not absent.
    assert all(p.grad is not None for p in branch.parameters())
    branch.eval()
    whole = branch(batch)
    firsts = [x[: counts[0]] for x, counts in zip(batch.nodes, LENGTHS, strict=True)]
    shape = branch.config.models
    alone = Features(
        tuple(firsts),
        tuple(
            Layout.build(n[:1], global_last=m.global_last)
            for n, m in zip(LENGTHS, shape, strict=True)
        ),
        tuple(None if p is None else p[:1] for p in batch.embeddings),
    )
    torch.testing.assert_close(branch(alone), whole[:1], rtol=1e-9, atol=1e-11)


def test_without_a_graph_only_embeddings_count():
    branch, batch = branch_of(convolution="none", norm="layer", dropout_head=0.5)
    assert sum(p.numel() for p in branch.parameters()) == 4 * 7 + 7
    kept = [p for p in batch.embeddings if p is not None]
    torch.testing.assert_close(branch.eval()(batch), branch.head.linear(torch.cat(kept, 1)))
    # The published order drops the result itself, not what goes in.
    assert (branch.train()(batch) == 0).any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"convolution": "none", "use_embeddings": False}, "must be embeddings"),
        ({"graph_hidden": (5,), "skip": True}, "skip: needs node_width"),
        ({"second_from_first": True}, "the second without tokens"),
    ],
)
def test_what_cannot_be_built_is_named(changes, says):
    with pytest.raises(UsageError, match=says):
        branch_of(**changes)
