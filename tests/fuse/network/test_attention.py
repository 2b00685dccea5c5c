"""The dense layer equals PyG's GATv2Conv in outputs and gradients, however it is cut."""

from __future__ import annotations

import pytest
import torch
from pyg_reference import PygAttention

from hada.fuse.batch import Layout
from hada.fuse.network import attention
from hada.fuse.network.attention import GlobalAttention, _Scores, _Values
from hada.fuse.settings import EdgeWeights

# torch_geometric scripts a few helpers when imported; torch deprecates that, and neither is ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]

LENGTHS = {
    "one model": [[3], [1], [5]],
    "two models": [[3, 2], [1, 6], [4, 1]],
    "equal lengths": [[4, 2], [4, 2]],
    "three, one embedding only": [[3, 1, 2], [2, 1, 7]],
    "only globals": [[1, 1, 1]],
}


def build(name, dtype=torch.float64):
    torch.manual_seed(0)
    lengths = torch.tensor(LENGTHS[name])
    last = [m % 2 == 1 for m in range(lengths.shape[1])]
    layer = GlobalAttention(6, 3, 5, EdgeWeights(), 0.0).to(dtype)
    torch.nn.init.normal_(layer.bias)
    layouts = [Layout.build(n.numpy(), global_last=e) for n, e in zip(lengths.T, last, strict=True)]
    nodes = [torch.randn(int(n.sum()), 6, dtype=dtype, requires_grad=True) for n in lengths.T]
    return layer, nodes, layouts, last


@pytest.mark.parametrize("name", LENGTHS)
def test_dense_equals_pyg(name):
    dense, nodes, layouts, last = build(name)
    pyg = PygAttention(dense, last)
    out, want = dense(nodes, layouts), pyg(nodes, layouts)
    torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(out)
    got = torch.autograd.grad((out * seed).sum(), [*nodes, *dense.parameters()])
    ours = dict(zip([n for n, _ in dense.named_parameters()], got[len(nodes) :], strict=True))
    theirs = dict(pyg.conv.named_parameters())
    ref = torch.autograd.grad((want * seed).sum(), [*nodes, *theirs.values()])
    torch.testing.assert_close(got[: len(nodes)], ref[: len(nodes)], rtol=1e-9, atol=1e-12)
    for key, value in zip(theirs, ref[len(nodes) :], strict=True):
        torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)


def test_chunked_equals_whole(monkeypatch):
    layer, nodes, layouts, _ = build("two models", torch.float32)

    def run():
        out = layer(nodes, layouts)
        return [out, *torch.autograd.grad(out.square().sum(), [*nodes, *layer.parameters()])]

    whole = run()
    monkeypatch.setitem(attention.CHUNK_NUMBERS, "cpu", 1)
    for a, b in zip(run(), whole, strict=True):
        torch.testing.assert_close(a, b)


def test_batch_equals_single_and_padding_adds_nothing():
    layer, nodes, layouts, last = build("two models")
    out = layer(nodes, layouts)
    parts = [h.split(lay.lengths_B.tolist()) for h, lay in zip(nodes, layouts, strict=True)]
    for graph in range(3):
        alone = [p[graph] for p in parts]
        single = [Layout.build([len(p)], global_last=e) for p, e in zip(alone, last, strict=True)]
        torch.testing.assert_close(layer(alone, single)[0], out[graph], rtol=1e-10, atol=1e-12)


def test_gradients_of_the_two_kernels():
    torch.manual_seed(1)
    key = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    reader = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True)
    att = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: _Scores.apply(*x, 0.2), (key, reader, att))
    alpha = torch.rand(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Values.apply, (alpha, key))


def test_dropout_hits_only_training():
    layer, nodes, layouts, _ = build("two models")
    layer.dropout = 0.5
    assert not torch.equal(layer(nodes, layouts), layer(nodes, layouts))
    layer.eval()
    assert torch.equal(layer(nodes, layouts), layer(nodes, layouts))
