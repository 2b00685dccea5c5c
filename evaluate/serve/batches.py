"""Queries of many clients, encoded together in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hada.evaluate.pages.look import Shown
from hada.evaluate.search.index import Query
from hada.evaluate.search.look import look_at
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
    ranks: bool = False


@dataclass(frozen=True)
class Look:
    """A query and the id of an item of the other side: what the run looks at in both is wanted."""

    kind: SideName
    source: Any
    split: str
    id: str


@dataclass
class _Waiting:
    ask: Ask | Look
    future: asyncio.Future[Any]


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

    async def look(self, look: Look) -> Shown:
        """What the run looks at; raises `BusyError`, or `UsageError` where there is nothing."""
        shown: Shown
        (shown,) = await self._answered([look])
        return shown

    async def answer(self, asks: Sequence[Ask]) -> list[list[Hit]]:
        """The results of some queries; raises `BusyError`, or what a query raised."""
        return await self._answered(asks)

    async def _answered(self, asks: Sequence[Ask | Look]) -> list[Any]:
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

    def _safely(self, asks: Sequence[Ask | Look]) -> list[Any]:
        """Results, or what went wrong: one query does not spoil the others of its batch."""
        try:
            return list(self.compute(asks))
        except Exception as error:
            if len(asks) == 1:
                return [error]
            return [self._safely([ask])[0] for ask in asks]

    def compute(self, asks: Sequence[Ask | Look]) -> list[Any]:
        """The results of a batch: encoded by kind, searched by what is searched."""
        found: list[Any] = [None] * len(asks)
        searches: dict[int, Ask] = {}
        for k, ask in enumerate(asks):
            if isinstance(ask, Look):
                found[k] = look_at(self._searchers[ask.split], ask.kind, ask.source, ask.id)
            else:
                searches[k] = ask
        for k, hits in self._searched(searches).items():
            found[k] = hits
        return found

    def _searched(self, asks: dict[int, Ask]) -> dict[int, list[Hit]]:
        queries: dict[int, Query] = {}
        encoder = next(iter(self._searchers.values())).encoder
        kinds: tuple[tuple[SideName, Any], ...] = (
            ("caption", encoder.texts),
            ("image", encoder.images),
        )
        for kind, encode in kinds:
            numbers = [k for k, ask in asks.items() if ask.kind == kind]
            if numbers:
                encoded = encode([asks[k].source for k in numbers])
                queries |= dict(zip(numbers, encoded, strict=True))
        # The second stage takes as many as are asked for: those who ask for more go apart.
        groups: dict[tuple[str, SideName, int, bool], list[int]] = {}
        for k, ask in asks.items():
            groups.setdefault((ask.split, ask.find, ask.top, ask.ranks), []).append(k)
        found: dict[int, list[Hit]] = {}
        for (split, find, top, ranks), numbers in groups.items():
            searcher = self._searchers[split]
            hits = searcher.find([queries[k] for k in numbers], find, top, ranks=ranks)
            found |= dict(zip(numbers, hits, strict=True))
        return found
