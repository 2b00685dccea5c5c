"""A branch against the authors' forward and training pass, and its own invariants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fuse_golden import features, load_npz, load_safetensors, our_keys

from hada.fuse.graph import Layout
from hada.fuse.model import Branch, BranchConfig, Features, ModelShape, prepare

PAPER = BranchConfig(
    models=(
        ModelShape(node_width=768, embedding_width=256),
        ModelShape(node_width=768, embedding_width=768),
    )
)


WEIGHTS = "hada_m_C5_mh_weights_f16.safetensors"


def golden_branch():
    branch = Branch(PAPER)
    branch.load_state_dict(our_keys(load_safetensors(WEIGHTS)))
    return branch


def golden_input(side):
    golden = load_npz(f"hada_m_C5_forward_{side}.npz")
    return golden, features({k[3:]: v for k, v in golden.items() if k.startswith("in.")})


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


def shapes(models=2, tokens=True):
    return tuple(
        ModelShape(
            node_width=5 + m if tokens or m else 4,
            embedding_width=None if m == 1 else 4,
            has_tokens=tokens,
            global_last=m == 1,
        )
        for m in range(models)
    )


def random_features(config, lengths):
    nodes, layouts = [], []
    for shape, counts in zip(config.models, lengths, strict=True):
        nodes.append(torch.randn(sum(counts), shape.node_width))
        layouts.append(Layout.build(counts, global_last=shape.global_last))
    some = [
        None if s.embedding_width is None else torch.randn(len(lengths[0]), s.embedding_width)
        for s in config.models
    ]
    return Features(tuple(nodes), tuple(layouts), tuple(some))


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("models", [1, 2, 3])
def test_any_number_of_models(models, norm):
    torch.manual_seed(0)
    config = BranchConfig(
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


def test_the_composite_equals_the_long_way():
    """BatchNorm's statistics with one small product, and with the wide layer as published."""
    torch.manual_seed(0)
    config = BranchConfig(models=shapes(2), node_width=8, head_width=3, graph_width=6, out_width=7)
    branch = Branch(config).double().train()
    batch = random_features(config, [[2, 3, 1], [1, 4, 2]])
    nodes = [torch.randn(6, 8).double(), torch.randn(7, 8).double()]
    short = branch.graph._others(nodes, batch.layouts)
    branch.graph.attention.dropout = 1e-300  # takes the long way and drops nothing
    for a, b in zip(short, branch.graph._others(nodes, batch.layouts), strict=True):
        torch.testing.assert_close(a, b)


def test_unit_inputs():
    x = torch.randn(4, 9) * 100
    torch.testing.assert_close(prepare(x, "unit").norm(dim=1), torch.full((4,), 3.0))
    assert torch.equal(prepare(x, "as-is"), x)
