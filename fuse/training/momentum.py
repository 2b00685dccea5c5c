"""Momentum encoders, and queues of their embeddings.

Shape letters: Q queue entries, N pushed rows, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOBODY = -100  # the id of an entry that never held an item


class MomentumQueue(nn.Module):
    """The last Q embeddings of one side with their image ids, in a ring.

    An entry may have several parts (the fused embedding, each model's own), pushed together.
    Unlike the published queue, each side has its own pointer and takes any number of rows, so a
    batch of few images with many captions keeps one copy per image. With `noise` the ring starts
    full of random unit vectors that count as negatives, as published; else it starts empty.
    """

    ids: Tensor
    start: Tensor
    filled: Tensor

    def __init__(self, size: int, widths: Sequence[int], *, noise: bool) -> None:
        super().__init__()
        self.size, self.count = size, len(widths)
        for k, width in enumerate(widths):
            values = torch.randn(size, width) if noise else torch.zeros(size, width)
            self.register_buffer(f"values_{k}", F.normalize(values, dim=1))
        self.register_buffer("ids", torch.full((size,), NOBODY, dtype=torch.int64))
        self.register_buffer("start", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.tensor(size if noise else 0))

    def values(self, part: int = 0) -> Tensor:
        """(filled, E) the entries of one part."""
        kept: Tensor = getattr(self, f"values_{part}")[: int(self.filled)]
        return kept

    def known_ids(self) -> Tensor:
        """(filled,) their image ids."""
        return self.ids[: int(self.filled)]

    @torch.no_grad()
    def push(self, parts: Sequence[Tensor], ids_N: Tensor) -> None:
        """Overwrite the oldest N entries; of more than Q rows only the last Q stay."""
        if self.size == 0:
            return
        rows = ids_N[-self.size :]
        place = (int(self.start) + torch.arange(len(rows), device=rows.device)) % self.size
        for k, part in enumerate(parts):
            getattr(self, f"values_{k}")[place] = part[-self.size :].detach().float()
        self.ids[place] = rows
        self.start.fill_((int(self.start) + len(rows)) % self.size)
        self.filled.fill_(min(int(self.filled) + len(rows), self.size))


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Update slow = momentum * slow + (1 - momentum) * fast, parameters only.

    BatchNorm's running statistics are not averaged: a slow encoder keeps its own, as published.
    """
    for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
        a.mul_(momentum).add_(b, alpha=1 - momentum)
