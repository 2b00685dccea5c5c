"""A branch against the authors' forward and training pass, and its own invariants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fuse_fakes import paper_branch
from fuse_golden import load_safetensors, our_keys
from golden_graphs import PAPER, WEIGHTS, golden_branch, golden_input
from small_batches import random_features, shapes

from hada.fuse.batch import Features, Layout, ModelShape
from hada.fuse.network.fuser import Branch
from hada.fuse.network.global_layer import GraphLayer, _group_equal_rows
from hada.fuse.network.inputs import prepare


@pytest.mark.parametrize("side", ["img", "cap"])
def test_golden_forward(side):
    branch = golden_branch().eval()
    golden, batch = golden_input(side)
    with torch.no_grad():
        out = branch(batch)
        nodes = [p(x) for p, x in zip(branch.project, batch.nodes, strict=True)]
        attended = branch.graph.attention(nodes, batch.layouts)
        states = branch.graph(nodes, batch.layouts)
    for m in (0, 1):
        np.testing.assert_allclose(attended[:, m], golden[f"eval.gatv2_cls_{m + 1}"], atol=1e-5)
        np.testing.assert_allclose(states[:, m], golden[f"eval.gcn_cls_{m + 1}"], atol=1e-5)
    np.testing.assert_allclose(out, golden["eval.out"], atol=1e-5)
    np.testing.assert_allclose(F.normalize(out, dim=1), golden["eval.out_l2"], atol=1e-6)


@pytest.mark.parametrize("side", ["img", "cap"])
def test_golden_training_pass(side):
    branch = golden_branch().train()
    golden, batch = golden_input(side)
    out = branch(batch)
    unit = F.normalize(out, dim=1)
    weights = torch.linspace(-1, 1, unit.numel()).view_as(unit)
    (unit * weights).sum().backward()
    np.testing.assert_allclose(unit.detach(), golden["train.out_l2"], atol=1e-5)
    np.testing.assert_allclose(out.detach(), golden["train.out"], atol=5e-5)
    like = load_safetensors(WEIGHTS)
    after = our_keys(golden, "train.after.", like)
    for name, value in branch.named_buffers():
        np.testing.assert_allclose(value, after[name], atol=1e-5, rtol=1e-5)
    grads = our_keys(golden, "train.grad.", like)
    norms = our_keys(golden, "train.gradnorm.", like)
    for name, parameter in branch.named_parameters():
        norm = float(norms[name])
        # A bias in front of a BatchNorm has gradient 0: both sides hold only rounding.
        scale = max(norm, 1e-3)
        assert abs(float(parameter.grad.norm()) - norm) <= 3e-4 * scale, name
        if name in grads:
            assert np.abs(parameter.grad.numpy() - grads[name]).max() <= 3e-4 * scale, name


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("models", [1, 2, 3])
def test_any_number_of_models(models, norm):
    torch.manual_seed(0)
    config = paper_branch(
        models=shapes(models), node_width=8, head_width=3, graph_width=6, out_width=7, norm=norm,
        inputs="unit", dropout_nodes=0.1, dropout_graph=0.1, dropout_head=0.1,
    )  # fmt: skip
    branch = Branch(config)
    batch = random_features(config, [[2, 3, 1], [1, 4, 2], [5, 1, 1]][:models])
    out = branch(batch)
    out.sum().backward()
    assert out.shape == (3, 7)
    assert all(p.grad is not None for p in branch.parameters())
    assert torch.equal(branch.eval()(batch), branch(batch))


@pytest.mark.parametrize("composite", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_other_rows_equal_the_long_way(dropout, composite, monkeypatch):
    """BatchNorm's other rows through one small product a way of dropping, or two large ones."""
    monkeypatch.setattr(GraphLayer, "_composite_pays", lambda _self, _rows: composite)
    torch.manual_seed(0)
    config = paper_branch(
        models=shapes(2),
        node_width=8,
        head_width=3,
        graph_width=6,
        out_width=7,
        dropout_graph=dropout,
    )
    branch = Branch(config).double().train()
    counts = [[2, 30, 1], [1, 4, 20]]
    batch = random_features(config, counts)
    nodes = [torch.randn(sum(n), 8).double().requires_grad_() for n in counts]
    attention, linear = branch.graph.attention, branch.graph.mix.linear
    torch.nn.init.normal_(attention.bias)
    torch.nn.init.normal_(attention.lin_l.bias)
    torch.manual_seed(1)
    short = torch.cat(branch.graph._others(nodes, batch.layouts))
    torch.manual_seed(1)
    parts = []
    for h, layout in zip(nodes, batch.layouts, strict=True):
        rest = h[[row for row in range(len(h)) if row not in layout.rows_B.tolist()]]
        alpha, order = torch.ones(len(rest), 4).double(), torch.arange(len(rest))
        if dropout:
            kept = torch.rand(len(rest), 4) < 1 - dropout
            alpha = alpha * kept / (1 - dropout)
            order = torch.cat(_group_equal_rows(kept)) if composite else order
        key = attention.lin_l(rest).view(len(rest), 4, -1) * alpha[..., None]
        parts.append(linear(key.flatten(1) + attention.bias)[order])
    long = torch.cat(parts)
    torch.testing.assert_close(short, long)
    weights = torch.randn_like(short)
    inputs = [*nodes, attention.lin_l.weight, attention.lin_l.bias, attention.bias, linear.weight]
    for x, y in zip(
        torch.autograd.grad((short * weights).sum(), inputs),
        torch.autograd.grad((long * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_rows_alike_are_together():
    table = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1]]).bool()
    assert [some.tolist() for some in _group_equal_rows(table)] == [[0, 2], [1], [3]]


def test_the_composite_is_for_many_rows():
    graph = Branch(replace(PAPER, dropout_graph=0.3)).graph
    captions, images = 20 * 15, 20 * 594
    assert not graph._composite_pays(captions)
    assert graph._composite_pays(images)


def test_unit_inputs():
    x = torch.randn(4, 9) * 100
    torch.testing.assert_close(prepare(x, "unit").norm(dim=1), torch.full((4,), 3.0))
    assert torch.equal(prepare(x, "as-is"), x)


def test_global_tokens_pass_the_graph():
    """They are the last inputs of the head, each as `inputs` prepares it."""
    rng = np.random.default_rng(3)
    lengths = [np.array([3, 1, 4]), np.array([2, 2, 2])]
    nodes = [torch.from_numpy(rng.normal(size=(int(n.sum()), 5)).astype("f4")) for n in lengths]
    layouts = [
        Layout.build(lengths[0], global_last=False),
        Layout.build(lengths[1], global_last=True),
    ]
    side = Features(tuple(nodes), tuple(layouts), (None, None))
    shapes = (
        ModelShape(node_width=5, embedding_width=None),
        ModelShape(node_width=5, embedding_width=None, global_last=True),
    )
    torch.manual_seed(0)
    config = paper_branch(
        models=shapes, node_width=8, heads=2, head_width=4, graph_width=8, out_width=6,
        norm="none", inputs="unit", use_globals=True,
    )  # fmt: skip
    branch = Branch(config).eval()
    assert branch.head.linear.in_features == 2 * 8 + 2 * 5
    first = F.normalize(nodes[0][[0, 3, 4]], dim=1) * 5**0.5
    last = F.normalize(nodes[1][[1, 3, 5]], dim=1) * 5**0.5
    graph = branch.graph(branch.nodes(side), side.layouts)
    passed = torch.cat([graph[:, 0], graph[:, 1], first, last], dim=1)
    torch.testing.assert_close(branch(side), branch.head(passed))


@pytest.mark.parametrize("training", [False, True])
def test_projections_folded_into_the_keys_change_nothing(training):
    """Outputs and gradients are those of projecting all nodes first."""
    torch.manual_seed(2)
    shapes_ = tuple(ModelShape(node_width=w, embedding_width=None) for w in (5, 9))
    config = paper_branch(
        models=shapes_, node_width=8, heads=2, head_width=4, graph_width=8, out_width=6,
        norm="none", inputs="unit",
    )  # fmt: skip
    branch = Branch(config).train(training).double()
    batch = random_features(config, [[2, 3, 1], [1, 4, 2]])
    batch = Features(tuple(x.double() for x in batch.nodes), batch.layouts, batch.embeddings)
    assert all(branch._foldable(project) is not None for project in branch.project)
    found = branch._graph(batch)
    plain = branch.graph(branch.nodes(batch), batch.layouts)
    torch.testing.assert_close(found, plain)
    parameters = [p for p in branch.parameters() if p.requires_grad]
    weights = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True),
        torch.autograd.grad((plain * weights).sum(), parameters, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_projections_with_dropout_are_not_folded_while_training():
    config = paper_branch(
        models=shapes(1), node_width=8, heads=2, head_width=4, norm="none", dropout_nodes=0.2
    )
    branch = Branch(config)
    assert branch._foldable(branch.project[0]) is None
    assert branch.eval()._foldable(branch.project[0]) is not None
