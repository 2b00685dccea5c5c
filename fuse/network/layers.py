"""Linear layers in the published orders; `hada.fuse.network.config` says which there are.

Shape letters: S rows, X any width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hada.fuse.settings import Activation, Norm

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
    "tanh": F.tanh,
    "elu": F.elu,
    "id": lambda x: x,
}


# Sixteen random bits decide about a number: dropout is exact to 2^-17.
DRAWS = 1 << 16
# Where PyTorch draws slowly.
BITS_ON = {"cpu"}


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`, whose own draws take five times as long on a CPU.

    Args:
        x: Any shape.
        share: Of the numbers that become 0; the others are divided by 1 - share.
        training: Whether anything is dropped.
    """
    if x.device.type not in BITS_ON or not 0 < share < 1 or not training:
        return F.dropout(x, share, training)
    count = x.numel()
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device)
    drawn.random_(-(2**63), None)
    bits = drawn.view(torch.int16)[:count].view(x.shape)
    kept = torch.ge(bits, round(share * DRAWS) - DRAWS // 2, out=torch.empty_like(x))
    return x * kept.mul_(1 / (1 - share))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return dropout(x, self.p, self.training)


class Hidden(nn.Module):
    """A layer before the last one of a stack: with norm, activation and dropout."""

    def __init__(
        self, wide_in: int, wide_out: int, norm: Norm, dropout: float, activation: Activation
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(wide_in, wide_out)
        nn.init.kaiming_normal_(self.linear.weight)
        batch = norm == "batch"
        self.norm: nn.Module = nn.BatchNorm1d(wide_out) if batch else nn.LayerNorm(wide_out)
        self.order, self.dropout, self.activation = norm, dropout, activation

    def forward(self, x_SX: Tensor) -> Tensor:
        """(S, in) -> (S, out)."""
        act = ACTIVATIONS[self.activation]
        if self.order == "none":
            out: Tensor = self.norm(act(self.linear(dropout(x_SX, self.dropout, self.training))))
            return out
        return dropout(act(self.norm(self.linear(x_SX))), self.dropout, self.training)


class Dense(nn.Module):
    """A stack of linear layers, mostly of one, with norm and dropout in a published order."""

    def __init__(
        self,
        wide_in: int,
        wide_out: int,
        norm: Norm,
        dropout: float,
        hidden: Sequence[int] = (),
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        widths = [wide_in, *hidden]
        self.before = nn.ModuleList(
            Hidden(a, b, norm, dropout, activation) for a, b in itertools.pairwise(widths)
        )
        self.linear = nn.Linear(widths[-1], wide_out)
        nn.init.kaiming_normal_(self.linear.weight)
        self.norm = nn.BatchNorm1d(wide_out) if norm == "batch" else None
        self.order, self.dropout = norm, dropout

    def forward(self, x_SX: Tensor) -> Tensor:
        """(S, in) -> (S, out)."""
        for layer in self.before:
            x_SX = layer(x_SX)
        if self.order == "none":
            x_SX = dropout(x_SX, self.dropout, self.training)
        return self.after(self.linear(x_SX))

    def after(self, x_SX: Tensor) -> Tensor:
        """What follows the last linear map."""
        if self.norm is not None:
            x_SX = self.norm(x_SX)
        return x_SX if self.order == "none" else dropout(x_SX, self.dropout, self.training)
