"""Dropout that draws bits: it must drop as often, scale, differentiate and repeat as PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hada.fuse.network.layers import Dropout, dropout


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(4001, 501), (2_000_003,)])
def test_it_drops_as_often_as_pytorch_and_keeps_the_mean(
    share: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.full(shape, 3.0)
    out = dropout(x, share, True)
    dropped = float((out == 0).float().mean())
    # Four deviations of so many draws.
    assert dropped == pytest.approx(share, abs=4 * (share * (1 - share) / x.numel()) ** 0.5)
    torch.testing.assert_close(out[out != 0], (x / (1 - share))[out != 0])
    plain = F.dropout(x, share, True)
    assert float(out.mean()) == pytest.approx(float(plain.mean()), rel=0.05)


def test_neighbours_and_calls_are_independent() -> None:
    """The four parts of a 64-bit draw decide each on its own."""
    torch.manual_seed(1)
    kept = torch.stack([dropout(torch.ones(1 << 16), 0.5, True) > 0 for _ in range(8)]).float()
    lanes = kept.reshape(-1, 4)
    assert torch.corrcoef(lanes.T).fill_diagonal_(0).abs().max() < 0.01
    assert lanes.mean(0).sub(0.5).abs().max() < 0.01
    assert torch.corrcoef(kept).fill_diagonal_(0).abs().max() < 0.02


def test_the_gradient_passes_where_the_value_does() -> None:
    torch.manual_seed(2)
    x = torch.randn(50, 7, requires_grad=True)
    out = dropout(x, 0.4, True)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (out.detach() != 0) / 0.6)


def test_a_seed_repeats_it() -> None:
    layer, x = Dropout(0.3), torch.randn(33, 5)
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(first, layer(x))
    torch.manual_seed(3)
    assert torch.equal(first, layer(x))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_the_range(share: float) -> None:
    x = torch.randn(9, 4)
    assert torch.equal(dropout(x, share, True), x * (1 - share))


def test_it_rests_in_evaluation_and_takes_what_it_is_given() -> None:
    x = torch.randn(9, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert dropout(torch.empty(0, 4), 0.5, True).shape == (0, 4)
    assert dropout(x.bfloat16(), 0.5, True).dtype == torch.bfloat16
    assert dropout(x.double(), 0.5, True).dtype == torch.float64
    assert dropout(x.T, 0.5, True).shape == (4, 9)
