"""Standardised inputs: measured on train, kept with the weights, and nothing else changes."""

from __future__ import annotations

import torch

from hada.fuse.model import Standardise


def test_features_come_out_centred_and_of_deviation_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 5) * torch.tensor([1.0, 3.0, 0.1, 2.0, 0.0]) + 7
    standard = Standardise(5)
    assert torch.equal(standard(x), x)
    standard.fit(x)
    y = standard(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0)[:4], torch.ones(4), atol=1e-4, rtol=0)
    assert torch.equal(y[:, 4], torch.zeros(400))  # it never changes: centred, not blown up


def test_they_travel_with_the_weights() -> None:
    torch.manual_seed(1)
    fitted, other = Standardise(3), Standardise(3)
    fitted.fit(torch.randn(50, 3) + 2)
    other.load_state_dict(fitted.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(fitted(x), other(x))
    assert not fitted.state_dict().keys() ^ {"mean", "deviation"}
