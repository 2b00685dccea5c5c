"""What the routes share: the searchers, the queue, and who is still there to be answered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve.batches import Batches, BusyError
from hada.evaluate.serve.metrics import Metrics
from hada.evaluate.serve.requests import MOST_TOP, decoded, read_body
from hada.evaluate.serve.settings import Settings
from hada.extract.common.errors import UsageError

Answer = TypeVar("Answer")


@dataclass
class Served:
    """What the routes share."""

    searchers: dict[str, Searcher]
    settings: Settings
    batches: Batches
    metrics: Metrics

    def split(self, name: str | None) -> str:
        """The split that is asked for, by default the first; 404 where it is not served."""
        if name is None:
            return next(iter(self.searchers))
        if name not in self.searchers:
            raise HTTPException(404, f"no such split here; served: {', '.join(self.searchers)}")
        return name


async def answered(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """What the work gives, while the client is there; 503 or 400 where it cannot be done."""
    try:
        return await _while_there(request, work)
    except BusyError as error:
        raise HTTPException(
            503, "too many queries wait; try again", {"retry-after": "1"}
        ) from error
    except UsageError as error:
        raise HTTPException(400, str(error)) from error


async def sent_image(served: Served, request: Request) -> Any:
    """The picture that is a request's body; 400 or 413 where it is none that is taken."""
    data = await read_body(request, served.settings.most_bytes)
    return await run_in_threadpool(decoded, data, served.settings.most_pixels)


def whole_number(request: Request, name: str, default: int) -> int:
    """A parameter of the address from 1 to `MOST_TOP`; 400 where it is something else."""
    given = request.query_params.get(name, str(default))
    right = given.isascii() and given.isdigit() and len(given) < 6
    if not (right and 1 <= int(given) <= MOST_TOP):
        raise HTTPException(400, f"{name}: expected a whole number from 1 to {MOST_TOP}")
    return int(given)


def one_of(request: Request, name: str, words: tuple[str, ...]) -> str:
    """A parameter of the address, by default the first of `words`; 400 where it is no word."""
    given: str = request.query_params.get(name, words[0])
    if given not in words:
        raise HTTPException(400, f"{name}: expected {' or '.join(words)}")
    return given


async def _while_there(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """What the work gives; it is cancelled, so that nobody waits for it, when the client leaves."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


async def _left(request: Request) -> None:
    # After the body nothing else is to come.
    while (await request.receive())["type"] != "http.disconnect":
        pass
