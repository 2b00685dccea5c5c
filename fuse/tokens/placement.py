"""Where training's tokens come from: the GPU, memory, the files, or windows of the files.

`device` holds all tokens on the GPU, `memory` in the machine's memory. `mapped` holds none: each
batch is read from the files by byte range, which is quick as long as the system can keep their
pages. `window` is for stores larger than that, or far away: see `hada.fuse.tokens.order`. The first
three make the same batches; the windows have an order of their own, which a run keeps wherever
it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from hada.extract.common.errors import UsageError
from hada.extract.common.host import free_memory, free_on_device
from hada.extract.spec import SIDES
from hada.fuse.tokens.order import Order
from hada.fuse.tokens.prefetch import reading_threads
from hada.fuse.tokens.split import MEMORY_SHARE, Split
from hada.fuse.tokens.windows import window_sizes

Mode = Literal["auto", "device", "memory", "mapped", "window"]
GIB = 2.0**30
# Of the memory for windows, the split that validates may take this share; else it stays on disk.
_VAL_SHARE = 0.25
# Of the memory that a GPU has free, tokens and batches on their way may take this share; weights,
# queues and activations need the rest.
DEVICE_SHARE = 0.85


@dataclass(frozen=True)
class Reading:
    """What was chosen.

    mode: Where tokens come from. shards: of a window, 0 where the whole split is shuffled.
    hold_val: Whether the validation split is in memory. why: the reason, for people. device: The
    one that all tokens are on, None where they are not.
    """

    mode: Mode
    shards: int
    hold_val: bool
    why: str
    device: torch.device | None = None

    def apply(self, train: Split, val: Split) -> None:
        """Bring the tokens of both splits to where they are read from.

        Args:
            train: The split to learn from.
            val: The split to validate with.
        """
        if self.device is not None:
            train.reside(self.device)
            val.reside(self.device)
            return
        if self.mode == "memory":
            train.load()
        if self.hold_val:
            val.load()

    def __str__(self) -> str:
        return f"{self.mode}: {self.why}"


def choose_reading(
    train: Split,
    val: Split,
    order: Order,
    batch_size: int,
    *,
    mode: Mode = "auto",
    memory: float | None = None,
    begun: int | None = None,
    device: torch.device | None = None,
) -> Reading:
    """Choose where the tokens of a training come from.

    Args:
        train: The split to learn from.
        val: The split to validate with.
        order: Of the recipe.
        batch_size: Of the recipe.
        mode: What was asked for.
        memory: Bytes that tokens may take, batches on their way included; None for half of what
            is free.
        begun: Shards of a window of the run that goes on, 0 if it shuffles the whole split; None
            for a new run.
        device: Where the training runs; None for the CPU.

    Raises:
        UsageError: What was asked for does not fit the memory, or the run that goes on.
    """
    free = free_memory()
    limit = MEMORY_SHARE * free if memory is None else memory
    bound = "half of what is free" if memory is None else "--memory"
    everything = train.bytes + val.bytes
    takes = f"the tokens take {gib(everything)}"
    fits = everything <= limit
    shards = begun or 0
    if mode in ("auto", "device"):
        found = _resident(train, val, order, batch_size, device, shards)
        if found is not None:
            return found
        if mode == "device":
            raise UsageError(
                f"--reading device: {takes}, and {_room_there(device)}. Use --reading auto"
            )
    if mode == "auto":
        mode = _automatic(train, fits, free if memory is None else memory, begun)
        if mode == "window" and not train.remote:
            try:
                return _windows(train, val, order, batch_size, limit, begun, takes)
            except UsageError:
                mode = "mapped"
    if mode == "memory":
        if not fits and memory is not None:
            raise UsageError(
                f"--reading memory: {takes}, --memory allows {gib(limit)}. "
                "Use --reading mapped or window"
            )
        return Reading("memory", shards, True, f"{takes}, allowed are {gib(limit)} ({bound})")
    if mode == "mapped":
        hold_val = val.bytes <= _VAL_SHARE * limit
        why = f"{takes}, read as they are needed; {gib(limit)} may be held ({bound})"
        return Reading("mapped", shards, hold_val, why)
    if begun == 0:
        raise UsageError(
            "--reading window: this run shuffles the whole split; go on with --reading mapped, "
            "or start over with --fresh"
        )
    return _windows(train, val, order, batch_size, limit, begun, takes)


def _resident(
    train: Split,
    val: Split,
    order: Order,
    batch_size: int,
    device: torch.device | None,
    shards: int,
) -> Reading | None:
    """Everything on the GPU, if it fits beside the batches on their way."""
    if device is None or not (room := DEVICE_SHARE * free_on_device(device)):
        return None
    tokens = train.bytes + val.bytes
    if tokens + batches_bytes(train, order, batch_size, threads=1) > room:
        return None
    why = f"the tokens take {gib(tokens)}, and {_room_there(device)}"
    return Reading("device", shards, True, why, device)


def _room_there(device: torch.device | None) -> str:
    if device is None or not free_on_device(device):
        return f"{device or 'cpu'} has no memory of its own"
    return f"{gib(DEVICE_SHARE * free_on_device(device))} of {device} may be taken"


def _automatic(train: Split, fits: bool, pages: float, begun: int | None) -> Mode:
    """Memory if all fits; the files if they are near and the system can keep their pages."""
    if fits:
        return "memory"
    if begun == 0 or (not train.remote and train.bytes <= pages):
        return "mapped"
    return "window"


def _windows(
    train: Split,
    val: Split,
    order: Order,
    batch_size: int,
    limit: float,
    begun: int | None,
    takes: str,
) -> Reading:
    hold_val = val.remote or val.bytes <= _VAL_SHARE * limit
    batches = batches_bytes(train, order, batch_size)
    room = limit - batches - (val.bytes if hold_val else 0)
    least = _least_shards(train, batch_size)
    sizes = 2 * window_sizes(train)
    blocks = len(sizes)
    most = int(np.searchsorted(sizes, room, "right"))
    needed = begun or least
    if most < min(needed, blocks):
        total = limit - room + int(sizes[:needed][-1])
        raise UsageError(
            f"--reading window: two windows of {needed} shards and the batches on their way take "
            f"{gib(total)}; allowed are {gib(limit)}. Give --memory {total / GIB + 0.01:.2f}"
            + " or more, or use --reading mapped"
        )
    shards = begun or most
    size = int(sizes[:shards][-1]) + limit - room
    return Reading(
        "window",
        shards,
        hold_val,
        f"{takes}; windows of {shards} of {blocks} shards keep that below {gib(size)}",
    )


def _least_shards(train: Split, batch_size: int) -> int:
    """Shards whose images are a batch, whichever they are: then two windows hold any batch."""
    images = np.sort(np.bincount(train.blocks))
    enough = np.flatnonzero(np.cumsum(images[images > 0]) >= batch_size + 1)
    return int(enough[0]) + 1 if len(enough) else int((images > 0).sum())


def batches_bytes(split: Split, order: Order, batch_size: int, threads: int | None = None) -> float:
    """Most bytes of tokens in batches on their way, their float32 copies included.

    Args:
        split: The split to learn from.
        order: What an item is.
        batch_size: Items of a step.
        threads: That read ahead; None for as many as a training has.
    """
    cost = {}
    for side in SIDES:
        rows = split.rows(side)
        cost[side] = np.sum(
            [
                source.lengths[rows] * (source.row_bytes + 4 * source.width)
                for source in split.sources[side]
            ],
            axis=0,
        )
    count = batch_size + 1  # a last batch of one item joins the one before
    if order == "images":
        captions = np.bincount(
            split.caption_to_image, weights=cost["caption"], minlength=split.images
        )
        largest = np.sort(cost["image"] + captions)[-count:].sum()
    else:
        largest = np.sort(cost["caption"])[-count:].sum() + count * cost["image"].max()
    # One is in use, one was until now, and `ahead` has threads + 1 more.
    return float(largest * ((threads or reading_threads()) + 3))


def gib(n_bytes: float) -> str:
    """Bytes as people read them, in the unit of --memory."""
    return f"{n_bytes / GIB:.3g} GiB"
