"""Images read ahead of the model, by threads or by worker processes, in order."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError, trouble_behind
from hada.extract.common.host import cores
from hada.extract.engine.decode_workers import Workers
from hada.extract.engine.items import ImageItems, Inputs, PictureItems

if TYPE_CHECKING:
    from hada.extract.engine.report import Report

# Batches that wait for the model, decoded: enough to never wait, little memory.
BATCHES_AHEAD = 2
MOST_THREADS = 8
# Pictures a thread or a process is given at once: few, so that a batch spreads over all of them.
MOST_AT_ONCE = 8

BatchT = TypeVar("BatchT")
SequenceT = TypeVar("SequenceT", range, list[Any])


class Pending(Protocol):
    """A batch that is being read."""

    def result(self) -> Inputs:
        """What the backbone takes of each image, or the reason (str) why there is nothing."""
        ...


class Reader(Protocol):
    """Where images come from. Batches must be taken in the order in which they were begun.

    ahead: batches to begin before they are needed.
    """

    ahead: int

    def begin(self, rows: range) -> Pending: ...
    def close(self) -> None: ...


class ThreadReader:
    """Threads of this process: no start-up, any kind of item, limited by the interpreter's lock."""

    def __init__(self, items: ImageItems, threads: int, ahead: int = BATCHES_AHEAD) -> None:
        self._items, self._threads, self.ahead = items, threads, ahead
        self._torch = sys.modules.get("torch")
        self._torch_threads = self._torch.get_num_threads() if self._torch else 0
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="decode", initializer=self._compute_alone
        )

    def begin(self, rows: range) -> Pending:
        return _Futures(
            [self._pool.submit(self._read, part) for part in _parts(rows, self._threads)]
        )

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._torch:
            self._torch.set_num_threads(self._torch_threads)

    def _compute_alone(self) -> None:
        """Transforms in PyTorch must not give each decoding thread helpers of its own.

        More computing threads than cores wait for each other. This counts for threads that have
        not computed yet.
        """
        if self._torch:
            self._torch.set_num_threads(1)

    def _read(self, rows: range) -> list[Any]:
        return [self._read_one(row) for row in rows]

    def _read_one(self, row: int) -> Any:
        try:
            return self._items.read(row)
        except DatasetError as error:
            if trouble := trouble_behind(error):
                raise trouble from error
            return str(error)


class ProcessReader:
    """Worker processes that fill a ring of shared memory, one block of slots a batch."""

    ahead = BATCHES_AHEAD

    def __init__(self, items: PictureItems, workers: int, batch_size: int) -> None:
        self._items, self._batch_size = items, batch_size
        # Beside those that wait there is the one that the model is taking.
        self._blocks = BATCHES_AHEAD + 2
        slots = self._blocks * batch_size
        self._workers = Workers(items.reader, workers, items.shape, slots)
        self._next = 0

    def begin(self, rows: range) -> Pending:
        first, self._next = self._next * self._batch_size, (self._next + 1) % self._blocks
        tasks = [(first + n, *self._items.source(row)) for n, row in enumerate(rows)]
        pixels = self._workers.pixels[first : first + len(tasks)]
        parts = _parts(tasks, self._workers.count)
        return _Slots([self._workers.submit(part) for part in parts], pixels)

    def close(self) -> None:
        self._workers.close()


def _parts(tasks: SequenceT, readers: int) -> list[SequenceT]:
    """`tasks` cut so that every reader has work."""
    at_once = min(MOST_AT_ONCE, ceil(len(tasks) / readers))
    return [tasks[start : start + at_once] for start in range(0, len(tasks), at_once)]


def make_reader(
    items: ImageItems, workers: int, batch_size: int, most_threads: int = MOST_THREADS
) -> Reader:
    """Worker processes if they were asked for and the model's transform can travel, else threads.

    Args:
        items: What is read.
        workers: Processes that were asked for; 0 for none.
        batch_size: Of the model; a process fills a whole batch.
        most_threads: There is one a core, and no more than these.
    """
    if workers and isinstance(items, PictureItems) and items.portable:
        return ProcessReader(items, workers, batch_size)
    threads = max(1, min(most_threads, max(workers, cores())))
    return ThreadReader(items, threads)


def read_ahead(
    reader: Reader, batches: Iterator[tuple[BatchT, range]], report: Report
) -> Iterator[tuple[BatchT, range, Inputs]]:
    """The batches with their inputs, some of them being read while the caller uses one.

    An input is good until the next is taken.
    """
    waiting: deque[tuple[BatchT, range, Pending]] = deque()
    while True:
        while len(waiting) <= reader.ahead and (batch_rows := next(batches, None)) is not None:
            waiting.append((*batch_rows, reader.begin(batch_rows[1])))
        if not waiting:
            return
        batch, rows, pending = waiting.popleft()
        began = time.monotonic()
        inputs = pending.result()
        report.seconds["decode"] += time.monotonic() - began
        yield batch, rows, inputs


class _Futures:
    def __init__(self, futures: Sequence[Future[Any]]) -> None:
        self._futures = futures

    def result(self) -> Inputs:
        return [answer for future in self._futures for answer in future.result()]


class _Slots(_Futures):
    def __init__(
        self, futures: list[Future[list[str | None]]], pixels: NDArray[np.float32]
    ) -> None:
        super().__init__(futures)
        self._pixels = pixels

    def result(self) -> Inputs:
        reasons = super().result()
        if not any(reasons):
            return self._pixels
        return [
            pixels if reason is None else reason
            for pixels, reason in zip(self._pixels, reasons, strict=True)
        ]
