"""Queries of many clients, encoded together in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hada.evaluate.search.index import Query
from hada.evaluate.search.searcher import Hit, Searcher
from hada.extract.spec import SideName

MOST, WAITING = 32, 512


class BusyError(Exception):
    """More queries wait than are taken."""


@dataclass(frozen=True)
class Ask:
    """One query: `source` is a text or a decoded image; `find` is the side that is searched."""

    kind: SideName
    source: Any
    split: str
    find: SideName
    top: int


@dataclass
class _Waiting:
    ask: Ask
    future: asyncio.Future[list[Hit]]


class Batches:
    """Answers queries; those that come while others are computed go together.

    Args:
        searchers: By split. They share one encoder.
        on_batch: Is told the size of every batch.
    """

    def __init__(
        self, searchers: dict[str, Searcher], on_batch: Callable[[int], None] = lambda _size: None
    ) -> None:
        self._searchers, self._on_batch = searchers, on_batch
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(WAITING)

    @property
    def waiting(self) -> int:
        """Queries that no batch has taken yet."""
        return self._queue.qsize()

    async def answer(self, asks: Sequence[Ask]) -> list[list[Hit]]:
        """The results of some queries; raises `BusyError`, or what a query raised."""
        if self._queue.qsize() + len(asks) > WAITING:
            raise BusyError
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in asks]
        for ask, future in zip(asks, futures, strict=True):
            self._queue.put_nowait(_Waiting(ask, future))
        found = await asyncio.gather(*futures, return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if not isinstance(one, BaseException)]

    async def run(self) -> None:
        """Work until it is cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MOST and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            # Whose client has left needs no answer.
            batch = [one for one in batch if not one.future.done()]
            if not batch:
                continue
            self._on_batch(len(batch))
            found = await asyncio.to_thread(self._safely, [one.ask for one in batch])
            for one, result in zip(batch, found, strict=True):
                if one.future.done():
                    continue
                if isinstance(result, Exception):
                    one.future.set_exception(result)
                else:
                    one.future.set_result(result)

    def _safely(self, asks: Sequence[Ask]) -> list[list[Hit] | Exception]:
        """Results, or what went wrong: one query does not spoil the others of its batch."""
        try:
            return list(self.compute(asks))
        except Exception as error:
            if len(asks) == 1:
                return [error]
            return [self._safely([ask])[0] for ask in asks]

    def compute(self, asks: Sequence[Ask]) -> list[list[Hit]]:
        """The results of a batch: encoded by kind, searched by what is searched."""
        queries: dict[int, Query] = {}
        encoder = next(iter(self._searchers.values())).encoder
        kinds: tuple[tuple[SideName, Any], ...] = (
            ("caption", encoder.texts),
            ("image", encoder.images),
        )
        for kind, encode in kinds:
            numbers = [k for k, ask in enumerate(asks) if ask.kind == kind]
            if numbers:
                encoded = encode([asks[k].source for k in numbers])
                queries |= dict(zip(numbers, encoded, strict=True))
        # The second stage takes as many as are asked for: those who ask for more go apart.
        groups: dict[tuple[str, SideName, int], list[int]] = {}
        for k, ask in enumerate(asks):
            groups.setdefault((ask.split, ask.find, ask.top), []).append(k)
        found: list[list[Hit]] = [[] for _ in asks]
        for (split, find, top), numbers in groups.items():
            hits = self._searchers[split].find([queries[k] for k in numbers], find, top)
            for k, best in zip(numbers, hits, strict=True):
                found[k] = best
        return found
