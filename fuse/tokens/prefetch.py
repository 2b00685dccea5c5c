"""Batches made ahead of the training by threads, and windows of tokens read ahead of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.host import cores
from hada.fuse.tokens.order import Epoch

Item = TypeVar("Item")


Made = TypeVar("Made")


# Batches that are made, or being made, before they are asked for: one more than threads.
MOST_THREADS = 4


def reading_threads() -> int:
    """Threads that make batches: half of the processors, for the training needs the others."""
    return max(1, min(MOST_THREADS, cores() // 2))


def ahead(
    make: Callable[[Item], Made], items: Sequence[Item], *, threads: int = 1
) -> Iterator[Made]:
    """`make` of each item, in order, made by threads up to `threads` + 1 items ahead.

    A single item is made at once: to start threads takes longer than to encode a query.

    Args:
        make: Is called from threads, once for each item.
        items: In the order in which their results are wanted.
        threads: How many.

    Yields:
        What `make` gave. What it raises is raised here, in its turn.
    """
    if len(items) < 2:
        yield from map(make, items)
        return
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
    """The steps of an epoch with the windows that they need, in order, some of them made ahead.

    Of any three windows in a row the third is never read before all steps of the first were handed
    out, so that there are two at most.

    Args:
        read: Is called with the number of one window after the other, in a thread of its own.
        make: Is called from threads, with the items of a step and its windows.
        epoch: The order of steps and windows.
        first: The step to begin with, from 0.
        threads: That call `make`.

    Yields:
        What `make` gave.
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
