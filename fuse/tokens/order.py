"""The order of an epoch, and batches made ahead of the training by threads.

Shuffling the whole split needs any item at any time. Shuffling in windows needs few: blocks of
images (the shards of the stores) are put in random order, `shards` of them are a window, and the
items of a window are shuffled among themselves. Only two windows are in memory then, each read
from end to end: the one in use, and the next. Both orders depend on the seed and the epoch alone,
not on threads, memory or device.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Order = Literal["images", "pairs"]
Item = TypeVar("Item")
Made = TypeVar("Made")
# Batches that are made, or being made, before they are asked for: one more than threads.
MOST_THREADS = 4


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
    """`count` items in any order."""
    steps = cut(np.random.default_rng([seed, epoch]).permutation(count), batch_size)
    return Epoch(order, steps, [], [(0, 0)] * len(steps))


def shuffle_windows(
    order: Order,
    blocks: NDArray[np.int64],
    owner: NDArray[np.int64],
    shards: int,
    batch_size: int,
    seed: int,
    epoch: int,
) -> Epoch:
    """Items in windows of `shards` blocks.

    Args:
        order: Whether the items are images or captions.
        blocks: (I,) the block of each image.
        owner: (T,) the image of each caption.
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
        members = [np.flatnonzero(np.isin(blocks[owner], group)) for group in groups]
    steps = cut(np.concatenate([random.permutation(some) for some in members]), batch_size)
    lasts = np.cumsum([len(step) for step in steps]) - 1
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    ends = np.cumsum([len(some) for some in members])
    needs = np.stack([np.searchsorted(ends, x, "right") for x in (firsts, lasts)], axis=1)
    return Epoch(order, steps, windows, [(int(a), int(b)) for a, b in needs])


def reading_threads() -> int:
    """Threads that make batches: half of the processors, for the training needs the others."""
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:
        processors = os.cpu_count() or 1
    return max(1, min(MOST_THREADS, processors // 2))


def ahead(
    make: Callable[[Item], Made], items: Sequence[Item], *, threads: int = 1
) -> Iterator[Made]:
    """`make` of each item, in order, made by threads up to `threads` + 1 items ahead."""
    with ThreadPoolExecutor(threads, thread_name_prefix="hada-batches") as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def ahead_in_windows(
    read: Callable[[int], Any],
    make: Callable[[NDArray[np.int64], list[Any]], Made],
    epoch: Epoch,
    first: int,
    *,
    threads: int = 1,
) -> Iterator[Made]:
    """`make` of each step from `first` on and of the windows that it needs, in order.

    `read(k)` is called for one window after the other, in a thread of its own. Of any three
    windows in a row it never reads the third before all steps of the first were handed out, so
    that there are two at most.
    """
    last = len(epoch.windows) - 1
    started: dict[int, Future[Any]] = {}
    waiting: deque[tuple[int, Future[Made]]] = deque()

    def build(items: NDArray[np.int64], windows: list[Future[Any]]) -> Made:
        return make(items, [window.result() for window in windows])

    with (
        ThreadPoolExecutor(1, thread_name_prefix="hada-windows") as reading,
        ThreadPoolExecutor(threads, thread_name_prefix="hada-batches") as making,
    ):
        try:
            for items, (low, high) in zip(epoch.steps[first:], epoch.needs[first:], strict=True):
                assert high <= low + 1, "a window holds fewer items than a step"
                while waiting and high > waiting[0][0] + 1:
                    yield waiting.popleft()[1].result()
                oldest = waiting[0][0] if waiting else low
                for gone in [k for k in started if k < oldest]:
                    del started[gone]
                for k in range(oldest, min(oldest + 1, last) + 1):
                    if k not in started:
                        started[k] = reading.submit(read, k)
                needed = [started[k] for k in range(low, high + 1)]
                waiting.append((low, making.submit(build, items, needed)))
                if len(waiting) > threads + 1:
                    yield waiting.popleft()[1].result()
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            for _, made in waiting:
                made.cancel()
            for window in started.values():
                window.cancel()
