"""What a batch is: the types that the loader, the network and the losses share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """The same tensor on a device.

    To a GPU it goes through pinned memory, from which the GPU copies by itself: the thread that
    makes batches goes on, and does not first wait for the step that is being computed. PyTorch
    keeps the pinned block until the copy is done. On its way back a tensor is waited for.
    """
    if torch.device(device).type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Layout:
    """Where one model's packed tokens of a batch lie once padded to (B, L).

    rows_B: the packed row of each graph's global node.
    tokens_BL: true at real tokens other than the global one.
    slots_S: position b * L + n of each packed row, or None where all lengths are L: then the
        padded form is only another view of the packed one.
    """

    lengths_B: Tensor
    rows_B: Tensor
    tokens_BL: Tensor
    slots_S: Tensor | None

    @classmethod
    def build(cls, lengths: NDArray[np.int64] | Sequence[int], *, global_last: bool) -> Self:
        """The layout of tokens of these lengths, whose global node is the first or last row.

        Args:
            lengths: (B,) rows of each item's graph, its global node among them.
            global_last: Whether an item's global node is its last row; else it is the first.

        Raises:
            ValueError: There are no items, or one has no row.
        """
        lengths_B = np.asarray(lengths, dtype=np.int64)
        if lengths_B.ndim != 1 or lengths_B.size == 0 or lengths_B.min() < 1:
            raise ValueError(f"lengths: every graph has a global node at least, got {lengths_B}")
        longest, ends_B = int(lengths_B.max()), np.cumsum(lengths_B)
        place_L = np.arange(longest)
        real_BL = place_L < lengths_B[:, None]
        globals_B = lengths_B - 1 if global_last else np.zeros_like(lengths_B)
        tokens_BL = real_BL & (place_L != globals_B[:, None])
        even = bool((lengths_B == longest).all())
        return cls(
            torch.from_numpy(lengths_B),
            torch.from_numpy(ends_B - lengths_B + globals_B),
            torch.from_numpy(tokens_BL),
            None if even else torch.from_numpy(np.flatnonzero(real_BL)),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same layout on another device."""
        return type(self)(
            sent(self.lengths_B, device),
            sent(self.rows_B, device),
            sent(self.tokens_BL, device),
            None if self.slots_S is None else sent(self.slots_S, device),
        )

    def pad(self, packed_SX: Tensor) -> Tensor:
        """(S, X) packed rows -> (B, L, X), zeros where there is no token."""
        batch, longest = self.tokens_BL.shape
        if self.slots_S is not None:
            empty = packed_SX.new_zeros(batch * longest, packed_SX.shape[1])
            packed_SX = empty.index_copy(0, self.slots_S, packed_SX)
        return packed_SX.view(batch, longest, -1)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What one frozen model brings to one side: widths, and which token is global."""

    node_width: int
    embedding_width: int | None
    has_tokens: bool = True
    global_last: bool = False


@dataclass(frozen=True)
class Features:
    """One side of a batch: B items as M models see them.

    nodes: per model (S_m, D_m) packed tokens, or its embeddings where it keeps no tokens: then
        each item has one node, which is its global node.
    layouts: where those rows belong.
    embeddings: per model (B, E_m), or None where it has no joint space.
    """

    nodes: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    embeddings: tuple[Tensor | None, ...]

    def __len__(self) -> int:
        return len(self.layouts[0].lengths_B)

    def take(self, items_N: Tensor) -> Self:
        """The features of some of the items, in the order asked for."""
        nodes, layouts = [], []
        for x_SD, layout in zip(self.nodes, self.layouts, strict=True):
            ends_B = layout.lengths_B.cumsum(0)
            starts_B = ends_B - layout.lengths_B
            lengths_N = layout.lengths_B[items_N]
            shift_N = starts_B[items_N] - (lengths_N.cumsum(0) - lengths_N)
            rows = torch.arange(int(lengths_N.sum()), device=x_SD.device)
            nodes.append(x_SD[rows + shift_N.repeat_interleave(lengths_N)])
            global_last = bool((layout.rows_B == ends_B - 1).all())
            part = Layout.build(lengths_N.cpu().numpy(), global_last=global_last)
            layouts.append(part.to(x_SD.device))
        embeddings = tuple(None if x is None else x[items_N] for x in self.embeddings)
        return type(self)(tuple(nodes), tuple(layouts), embeddings)

    def to(self, device: torch.device | str) -> Self:
        """The same features on a device, as float32."""
        return type(self)(
            tuple(sent(x, device).float() for x in self.nodes),
            tuple(layout.to(device) for layout in self.layouts),
            tuple(None if x is None else sent(x, device).float() for x in self.embeddings),
        )


@dataclass(frozen=True)
class Batch:
    """Images and captions of one step.

    Entry j of `caption_to_image_T` is the row in this batch of caption j's image; `ids_B` says
    which image of the data set each row is. A batch of pairs has B = T and may hold an image twice.
    """

    image: Features
    caption: Features
    ids_B: Tensor
    caption_to_image_T: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return type(self)(
            self.image.to(device),
            self.caption.to(device),
            sent(self.ids_B, device),
            sent(self.caption_to_image_T, device),
        )
