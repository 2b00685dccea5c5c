"""One model on one side of a split: its nodes by store row, from a device, memory or files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.extract.common.errors import StoreError
from hada.extract.spec import SideName
from hada.extract.store import StoreReader
from hada.fuse.batch import ModelShape

ITEMS_PER_READ = 2048


class Source:
    """The nodes and embeddings of one model on one side, by store row.

    lengths: (n,) int64 nodes of each item. bytes: of all tokens in memory. row_bytes: of one node.
    Without `tokens` each item is one node, its embedding, even where the store keeps tokens.
    """

    def __init__(self, store: StoreReader, side: SideName, *, tokens: bool = True) -> None:
        self._reader = store.image if side == "image" else store.caption
        spec = store.spec.model.tokens(side) if tokens else None
        self.embeddings = self._reader.embeddings()
        self.has_tokens = spec is not None
        self.held: Held | None = None
        self.resident: Resident | None = None
        if spec is not None:
            self.lengths = np.asarray(self._reader.lengths, dtype=np.int64)
            self.count, self.width = spec.count, spec.width
            self.global_last = spec.global_token == "last"
        elif self.embeddings is not None:
            self.lengths = np.ones(len(self._reader.ids), dtype=np.int64)
            self.count, self.width, self.global_last = 1, self.embeddings.shape[1], False
        else:
            raise StoreError(
                f"{store.path}: keeps neither tokens nor embeddings of the {side} side, so there "
                "is nothing to fuse; leave this model out"
            )
        self.dtype = self._reader.dtype
        self.row_bytes = self.width * self.dtype.itemsize
        self.bytes = int(self.lengths.sum()) * self.row_bytes if self.has_tokens else 0
        self.shape = ModelShape(
            node_width=self.width,
            embedding_width=None if self.embeddings is None else self.embeddings.shape[1],
            has_tokens=self.has_tokens,
            global_last=self.global_last,
        )

    def load(self) -> None:
        """Take all tokens into memory, in the type they are stored in."""
        if self.has_tokens and self.held is None:
            values = np.empty((int(self.lengths.sum()), self.width), self.dtype)
            self.held = self.read(np.arange(len(self.lengths)), values)

    def reside(self, device: torch.device) -> None:
        """Take all tokens to a device, in the type they are stored in, a piece at a time."""
        if not self.has_tokens or self.resident is not None:
            return
        shape = (int(self.lengths.sum()), self.width)
        values_SD = torch.empty(shape, dtype=_torch_dtype(self.dtype), device=device)
        done = 0
        for first in range(0, len(self.lengths), ITEMS_PER_READ):
            rows = np.arange(first, min(first + ITEMS_PER_READ, len(self.lengths)))
            piece = torch.from_numpy(self._reader.tokens(rows))
            values_SD[done : done + len(piece)] = piece
            done += len(piece)
        self.resident = Resident(values_SD, self.lengths)

    def read(self, rows: NDArray[np.int64], room: NDArray[Any]) -> Held:
        """The tokens of `rows`, ascending, read into the first rows of `room`."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        for first in range(0, len(rows), ITEMS_PER_READ):
            last = min(first + ITEMS_PER_READ, len(rows))
            place = room[ends[first] - lengths[first] : ends[last - 1]]
            self._reader.tokens(rows[first:last], out=place)
        return Held(rows, ends - lengths, room, self.count)

    def nodes(
        self, rows: NDArray[np.int64], held: tuple[Held, ...] = (), *, pinned: bool = False
    ) -> Tensor:
        """(sum of lengths[rows], D) nodes, item after item.

        Args:
            rows: Items, in any order.
            held: Where those items are: the first ones in the first, and so on. Without it they
                come from what `reside` or `load` holds, or from the files.
            pinned: Whether to put them where a GPU can fetch them by itself.
        """
        if not self.has_tokens:
            assert self.embeddings is not None
            return torch.from_numpy(self.embeddings[rows])
        if self.resident is not None:
            return self.resident.take(rows)
        lengths = self.lengths[rows]
        out_SD = _room((int(lengths.sum()), self.width), self.dtype, pinned)
        flat = out_SD.numpy()
        if not held and self.held is None:
            self._reader.tokens(rows, out=flat)
            return out_SD
        done = place = 0
        for block in held or (self.held,):
            assert block is not None
            here = block.has(rows[done:])
            end = place + int(lengths[done : done + here].sum())
            block.take(rows[done : done + here], lengths[done : done + here], flat[place:end])
            done, place = done + here, end
        assert done == len(rows), "a batch holds items of windows that are not in memory"
        return out_SD


class Held:
    """The tokens of some items in memory: those of item `rows[k]` begin at `starts[k]`.

    rows: (n,) ascending store rows. starts: (n,). values: (S or more, D). count: tokens of each
    item, None where they vary.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        values: NDArray[Any],
        count: int | None,
    ) -> None:
        self._rows, self._starts, self._values, self._count = rows, starts, values, count

    def has(self, rows: NDArray[np.int64]) -> int:
        """How many of the first `rows`, without a gap, are here."""
        places = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        missing = np.flatnonzero(self._rows[places] != rows)
        return int(missing[0]) if len(missing) else len(rows)

    def take(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy the tokens of items that are here into `out` (sum of lengths, D)."""
        # mode="clip": with "raise", NumPy would fill a copy of `out` first.
        places, width = np.searchsorted(self._rows, rows), out.shape[1]
        if self._count is not None:
            items = self._values[: len(self._rows) * self._count].reshape(-1, self._count, width)
            items.take(places, 0, out.reshape(-1, self._count, width), mode="clip")
            return
        shift = self._starts[places] - (np.cumsum(lengths) - lengths)
        self._values.take(np.repeat(shift, lengths) + np.arange(len(out)), 0, out, mode="clip")


# The tokens of one window: per side, per model, None where a model keeps no tokens.
Window = dict[SideName, tuple[Held | None, ...]]


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], pinned: bool) -> Tensor:
    if not pinned:
        return torch.from_numpy(np.empty(shape, dtype))
    # torch's own tensor, not a view of it: its allocator must know when the copy is done.
    return torch.empty(shape, dtype=_torch_dtype(dtype), pin_memory=True)


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Resident:
    """The tokens of all items on a device: no batch of them is read or sent again.

    values: (S, D) on the device, item after item. lengths: (n,) tokens of each item.
    """

    def __init__(self, values: Tensor, lengths: NDArray[np.int64]) -> None:
        self._values, self._lengths = values, lengths
        self.bytes = values.numel() * values.element_size()
        self._starts = np.cumsum(lengths) - lengths

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """(sum of lengths[rows], D) tokens of some items, in any order, gathered on the device."""
        lengths = self._lengths[rows]
        shift = self._starts[rows] - (np.cumsum(lengths) - lengths)
        index_S = np.repeat(shift, lengths) + np.arange(int(lengths.sum()))
        return self._values.index_select(0, torch.from_numpy(index_S).to(self._values.device))
