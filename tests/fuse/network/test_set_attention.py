"""Both ways of attending within sets beside a loop over the sets, and beside torch's own flex."""

from __future__ import annotations

import math

import pytest
import torch
from small_batches import random_features, shapes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hada.fuse.network import set_attention
from hada.fuse.network.nodes import NodeEncoder
from hada.fuse.settings import NodeSettings

WAYS = {"biased": set_attention.biased, "folded": set_attention.folded}
HEADS, WIDTH, MODELS = 2, 8, 3
# Of one node, around the blocks of 128 that fused kernels work in, and full.
LENGTHS = (1, 2, 63, 64, 65, 127, 128, 129, 200)


def drawn(lengths, dtype=torch.float64, longest=None, device="cpu"):
    """Query, key, value and edges that want gradients, the models of places, what is real."""
    torch.manual_seed(0)
    longest = longest or max(lengths)
    sets = [torch.randn(len(lengths), HEADS, longest, WIDTH, dtype=dtype) for _ in range(3)]
    edges = torch.randn(HEADS, MODELS, MODELS, dtype=dtype)
    wanted = [x.to(device).requires_grad_() for x in (*sets, edges)]
    models = torch.randint(MODELS, (longest,))
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return wanted, models.to(device), real.to(device)


def loop(query, key, value, edges, models, real):
    """Set after set, head after head, node after node of those who hear."""
    out = torch.zeros_like(query)
    for b, there in enumerate(real):
        places = there.nonzero()[:, 0]
        for h in range(len(edges)):
            for i in places:
                score = key[b, h, places] @ query[b, h, i] / math.sqrt(query.shape[-1])
                score = score + edges[h, models[i], models[places]]
                weight = score.exp() / score.exp().sum()
                out[b, h, i] = weight @ value[b, h, places]
    return out


def with_gradients(attend, wanted, models, real):
    """What real nodes hear, and the gradient of everything that wants one."""
    out = attend(*wanted, models, real) * real[:, None, :, None]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    gradients = torch.autograd.grad((out * upstream).sum(), wanted)
    return [out.detach(), *gradients]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lengths", [(1,), (3, 1, 5), (4, 4), LENGTHS[::4]])
def test_every_set_is_attended_as_if_it_were_alone(way, lengths):
    inputs = drawn(lengths)
    for ours, slow in zip(
        with_gradients(WAYS[way], *inputs), with_gradients(loop, *inputs), strict=True
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("longest", [200, 256])
def test_padding_changes_nothing(way, longest):
    """Sets of all lengths beside each other, and each alone without padding; gradients, too."""
    wanted, models, real = drawn(LENGTHS, longest=longest)
    together = with_gradients(WAYS[way], wanted, models, real)
    upstream = torch.randn(wanted[0].shape, generator=torch.Generator().manual_seed(1)).double()
    of_edges = torch.zeros_like(wanted[3])
    for b, n in enumerate(LENGTHS):
        alone = [x[b : b + 1, :, :n].detach().requires_grad_() for x in wanted[:3]]
        alone.append(wanted[3].detach().requires_grad_())
        out = set_attention.biased(*alone, models[:n], real[b : b + 1, :n])
        *parts, edges = torch.autograd.grad((out * upstream[b : b + 1, :, :n]).sum(), alone)
        of_edges += edges
        for ours, one in zip(together, (out, *parts), strict=False):
            torch.testing.assert_close(ours[b : b + 1, :, :n], one, rtol=1e-9, atol=1e-11)
            assert not ours[b, :, n:].any()
    torch.testing.assert_close(together[-1], of_edges, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_a_set_without_nodes_harms_no_other(way):
    whole = drawn((5, 0, 3))
    found = with_gradients(WAYS[way], *whole)
    assert all(bool(x.isfinite().all()) for x in found)
    assert not any(x[1].any() for x in found[:4])
    slow = with_gradients(loop, *whole)
    for ours, expected in zip(found, slow, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("way", WAYS)
def test_torch_s_own_attention_of_packed_sets_agrees(way):
    """flex_attention on the nodes alone, set behind set: its mask says whose set a node is of."""
    (query, key, value, edges), models, real = drawn(LENGTHS, torch.float32)
    packed = [x.detach().transpose(1, 2)[real].transpose(0, 1)[None] for x in (query, key, value)]
    set_S, model_S = real.nonzero()[:, 0], models.expand(real.shape)[real]
    count = len(set_S)

    def of_one_set(_batch, _head, i, j):
        return set_S[i] == set_S[j]

    def with_edge(score, _batch, head, i, j):
        return score + edges[head, model_S[i], model_S[j]]

    mask = create_block_mask(of_one_set, None, None, count, count, device="cpu")
    with torch.no_grad():
        theirs = flex_attention(*packed, score_mod=with_edge, block_mask=mask)
        ours = WAYS[way](query, key, value, edges, models, real)
    torch.testing.assert_close(
        ours.transpose(1, 2)[real], theirs[0].transpose(0, 1), rtol=1e-4, atol=1e-5
    )


def test_weights_that_are_dropped_leave_the_mean_as_it_is():
    """A third of the weights, over many draws: a fault in the scale of the rest would show."""
    (query, key, value, edges), models, real = drawn((40,), torch.float32)
    rows = [x.detach().expand(3000, -1, -1, -1) for x in (query, key, value)]
    with torch.no_grad():
        whole = set_attention.folded(query, key, value, edges, models, real)
        dropped = set_attention.folded(*rows, edges, models, real.expand(3000, -1), 1 / 3)
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), whole[0], rtol=0, atol=0.08)


def encoder_and_features():
    torch.manual_seed(0)
    settings = NodeSettings(width=6, hidden=8, graph="attention", graph_width=16, graph_heads=4)
    encoder = NodeEncoder(settings, shapes())
    assert encoder.graph is not None
    torch.nn.init.normal_(encoder.graph.edges)
    torch.nn.init.ones_(encoder.graph.gate)  # at 0 no node would hear a thing
    lengths = ([3, 1, 7], [2, 5, 1])

    class Models:
        models = shapes()

    return encoder.eval(), random_features(Models, lengths)


def test_a_network_gives_the_same_nodes_either_way(monkeypatch):
    """The same parameters, the same gradients: what a GPU computes, computed here."""
    encoder, features = encoder_and_features()
    found = []
    for ways in (set_attention.WAYS, {}):
        monkeypatch.setattr(set_attention, "WAYS", ways)
        nodes = encoder(features)
        upstream = torch.randn(nodes.vectors_SD.shape, generator=torch.Generator().manual_seed(1))
        encoder.zero_grad()
        (nodes.vectors_SD * upstream).sum().backward()
        found.append(
            [nodes.vectors_SD.detach(), *(p.grad.clone() for p in encoder.graph.parameters())]
        )
    assert found[0][0].shape[0] > 0
    for one, two in zip(*found, strict=True):
        assert bool(one.any())
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_cpu_computes_as_earlier_versions_did():
    """The order of additions decides the last bits, and so how an old run goes on."""
    (query, key, value, edges), models, real = drawn(LENGTHS, torch.float32)
    table = edges[:, models[:, None], models[None, :]]
    table = table.masked_fill(~real[:, None, None, :], float("-inf"))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=table)
    assert torch.equal(set_attention.attend(query, key, value, edges, models, real), expected)


@pytest.mark.gpu
def test_a_gpu_takes_its_fused_kernel_and_agrees():
    here = with_gradients(set_attention.biased, *drawn(LENGTHS, torch.float32))
    # Any other kernel is refused: the widths must be those that it takes.
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        there = with_gradients(set_attention.attend, *drawn(LENGTHS, torch.float32, device="cuda"))
    for one, two in zip(here, there, strict=True):
        torch.testing.assert_close(two.cpu(), one, rtol=1e-3, atol=1e-4)
