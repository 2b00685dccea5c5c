"""The order of an epoch, and batches made ahead of the training by threads.

Shuffling the whole split needs any item at any time. Shuffling in windows needs few: blocks of
images (the shards of the stores) are put in random order, `shards` of them are a window, and the
items of a window are shuffled among themselves. Only two windows are in memory then, each read
from end to end: the one in use, and the next. Both orders depend on the seed and the epoch alone,
not on threads, memory or device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["images", "pairs"]


@dataclass(frozen=True)
class Epoch:
    """The steps of one epoch.

    order: What `steps` count. steps: items of each step. windows: the images of each window,
    ascending; none where the whole split is shuffled. needs: first and last window of each step.
    """

    order: Order
    steps: list[NDArray[np.int64]]
    windows: list[NDArray[np.int64]]
    needs: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.steps)


def cut(shuffled: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The items of each step.

    A last batch of one item joins the one before: BatchNorm and hard negatives need two.
    """
    parts = [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def shuffle_all(order: Order, count: int, batch_size: int, seed: int, epoch: int) -> Epoch:
    """An epoch of all items in any order.

    Args:
        order: What an item is.
        count: How many there are.
        batch_size: Items of a step.
        seed: Of the training.
        epoch: From 0; with the seed it decides the order.
    """
    steps = cut(np.random.default_rng([seed, epoch]).permutation(count), batch_size)
    return Epoch(order, steps, [], [(0, 0)] * len(steps))


def shuffle_windows(
    order: Order,
    blocks: NDArray[np.int64],
    caption_to_image: NDArray[np.int64],
    shards: int,
    batch_size: int,
    seed: int,
    epoch: int,
) -> Epoch:
    """Items in windows of `shards` blocks.

    Args:
        order: Whether the items are images or captions.
        blocks: (I,) the block of each image.
        caption_to_image: (T,) the image of each caption.
        shards: Blocks of a window; the last window may have fewer.
        batch_size: Items of a step; a step may begin in one window and end in the next.
        seed: Of the training.
        epoch: Number of the epoch.
    """
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(np.unique(blocks))
    groups = [shuffled[k : k + shards] for k in range(0, len(shuffled), shards)]
    windows = [np.flatnonzero(np.isin(blocks, group)) for group in groups]
    if order == "images":
        members = windows
    else:
        members = [np.flatnonzero(np.isin(blocks[caption_to_image], group)) for group in groups]
    steps = cut(np.concatenate([random.permutation(some) for some in members]), batch_size)
    lasts = np.cumsum([len(step) for step in steps]) - 1
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    ends = np.cumsum([len(some) for some in members])
    needs = np.stack([np.searchsorted(ends, x, "right") for x in (firsts, lasts)], axis=1)
    return Epoch(order, steps, windows, [(int(a), int(b)) for a, b in needs])
