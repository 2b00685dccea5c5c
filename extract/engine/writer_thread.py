"""A thread that writes finished shards while the model computes the next."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hada.extract.engine.encode import Shard
from hada.extract.store import StoreWriter

if TYPE_CHECKING:
    from hada.extract.engine.report import Report

# Shards in memory beside the one that the model fills: a model's tokens are large.
MOST_WAITING = 1


class WriterThread:
    """Use as a context: leaving it waits until all is written.

    Left by an exception (Ctrl-C, say), it finishes the shard it was given, which is whole.
    """

    def __init__(self, writer: StoreWriter, report: Report) -> None:
        self._writer, self._report = writer, report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._jobs: deque[Future[None]] = deque()

    def put(self, shard: Shard, **provenance: Any) -> None:
        """Hand over a shard; waits where the one before it is not written yet."""
        while len(self._jobs) >= MOST_WAITING:
            self._wait()
        self._jobs.append(self._thread.submit(self._write, shard, provenance))

    def check(self) -> None:
        """Raise at once what went wrong in writing."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()

    def __enter__(self) -> WriterThread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            while self._jobs and kind is None:
                self._wait()
        finally:
            self._thread.shutdown(wait=True)

    def _wait(self) -> None:
        began = time.monotonic()
        try:
            self._jobs.popleft().result()
        finally:
            self._report.seconds["write"] += time.monotonic() - began

    def _write(self, shard: Shard, provenance: dict[str, Any]) -> None:
        with shard.claim:
            self._writer.write(shard.side, shard.number, shard.block(**provenance))
        shard.values = shard.embeddings = None
