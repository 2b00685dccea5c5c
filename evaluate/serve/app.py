"""The server as an ASGI application.

A request holds texts, images and ids, never a path; an id that the data set does not list has no
picture. Nothing that is sent is written to a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve.batches import Ask, Batches, BusyError
from hada.evaluate.serve.gate import Outermost, error_response, json_response
from hada.evaluate.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from hada.evaluate.serve.openapi import as_page, openapi
from hada.evaluate.serve.page import PAGE, SCRIPT, STYLE, framed
from hada.evaluate.serve.requests import (
    MOST_TOP,
    TEXT_BYTES,
    BatchQuery,
    TextQuery,
    checked_text,
    decoded,
    from_base64,
    parsed,
    read_body,
)
from hada.evaluate.serve.settings import Settings
from hada.extract import __version__
from hada.extract.common.errors import UsageError
from hada.extract.datasets.images import ImageError, open_image
from hada.extract.spec import SideName

Answer = TypeVar("Answer")
PICTURE, PICTURES_KEPT = 320, 512  # pixels of the longer side; how many stay in memory


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


def build_app(searchers: dict[str, Searcher], settings: Settings) -> Starlette:
    """The application.

    Args:
        searchers: By split, in the order in which they are shown; they share their models.
        settings: Its limits and its token.
    """
    batches = Batches(searchers, lambda size: served.metrics.batches.observe(size))
    served = Served(searchers, settings, batches, Metrics(lambda: batches.waiting))

    @contextlib.asynccontextmanager
    async def working(_app: Starlette) -> AsyncIterator[None]:
        worker = asyncio.create_task(batches.run())
        try:
            yield
        finally:
            worker.cancel()

    def route(path: str, handler: Callable[..., Awaitable[Response]], method: str) -> Route:
        async def endpoint(request: Request) -> Response:
            return await handler(served, request)

        return Route(path, endpoint, methods=[method])

    described = openapi(__version__, token=settings.token is not None)
    texts = {
        "/": (framed("HADA search", PAGE), "text/html"),
        "/page.js": (SCRIPT, "text/javascript"),
        "/page.css": (STYLE, "text/css"),
        "/docs": (framed("The API", as_page(described), script=False), "text/html"),
        "/openapi.json": (json.dumps(described), "application/json"),
        "/health": (json.dumps({"status": "ok"}), "application/json"),
    }
    middleware = [Middleware(Outermost, settings=settings, metrics=served.metrics)]
    if settings.loopback:
        # A page of the web whose name turns to this machine is not this machine.
        hosts = ["127.0.0.1", "localhost", "[::1]", settings.host]
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return Starlette(
        routes=[
            *(Route(path, _fixed(*text), methods=["GET"]) for path, text in texts.items()),
            Route("/favicon.ico", _nothing, methods=["GET"]),
            route("/api/text", by_text, "POST"),
            route("/api/image", by_image, "POST"),
            route("/api/batch", by_batch, "POST"),
            route("/api/picture", picture, "GET"),
            route("/api/info", info, "GET"),
            route("/metrics", metrics, "GET"),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _problem},
        lifespan=working,
    )


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = error_response(error.status_code, error.detail)
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


def _fixed(text: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        return Response(text, media_type=kind)

    return endpoint


async def _nothing(_request: Request) -> Response:
    """Browsers ask for an icon, and complain of 404."""
    return Response(status_code=204)


async def by_text(served: Served, request: Request) -> Response:
    """POST /api/text."""
    asked: TextQuery = parsed(await read_body(request, TEXT_BYTES), TextQuery)
    split = served.split(asked.split)
    ask = Ask("caption", checked_text(asked.text), split, _side(asked.find), asked.top)
    return json_response((await _answered(served, request, [ask]))[0])


async def by_image(served: Served, request: Request) -> Response:
    """POST /api/image: the body is the file."""
    limits, query = served.settings, request.query_params
    split = served.split(query.get("split"))
    find, top = query.get("find", "captions"), query.get("top", "10")
    if find not in ("images", "captions"):
        raise HTTPException(400, "find: expected images or captions")
    if not (top.isascii() and top.isdigit() and len(top) < 6 and 1 <= int(top) <= MOST_TOP):
        raise HTTPException(400, f"top: expected a whole number from 1 to {MOST_TOP}")
    data = await read_body(request, limits.most_bytes)
    image = await run_in_threadpool(decoded, data, limits.most_pixels)
    ask = Ask("image", image, split, _side(find), int(top))
    return json_response((await _answered(served, request, [ask]))[0])


async def by_batch(served: Served, request: Request) -> Response:
    """POST /api/batch."""
    limits = served.settings
    body = await read_body(request, TEXT_BYTES + 2 * limits.most_bytes)
    asked: BatchQuery = parsed(body, BatchQuery)
    if not asked.texts and not asked.images:
        raise HTTPException(400, "the batch is empty: expected texts or images")
    split = served.split(asked.split)
    asks = [
        Ask("caption", checked_text(text), split, _side(asked.find or "images"), asked.top)
        for text in asked.texts
    ]
    for text in asked.images:
        data = from_base64(text, limits.most_bytes)
        image = await run_in_threadpool(decoded, data, limits.most_pixels)
        asks.append(Ask("image", image, split, _side(asked.find or "captions"), asked.top))
    return json_response({"answers": await _answered(served, request, asks)})


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


def _side(find: str) -> SideName:
    return "image" if find == "images" else "caption"


async def _answered(served: Served, request: Request, asks: list[Ask]) -> list[dict[str, Any]]:
    """The results as they are sent: without paths, with the address of each picture."""
    for ask in asks:
        served.metrics.queries.labels("text" if ask.kind == "caption" else "image").inc()
    try:
        found = await _while_there(request, served.batches.answer(asks))
    except BusyError as error:
        raise HTTPException(
            503, "too many queries wait; try again", {"retry-after": "1"}
        ) from error
    except UsageError as error:
        raise HTTPException(400, str(error)) from error
    answers = []
    for ask, hits in zip(asks, found, strict=True):
        for hit in hits:
            hit.pop("file", None)
            image = served.searchers[ask.split].image_of(ask.find, hit["id"])
            if image is not None:
                hit["picture"] = "/api/picture?" + urlencode({"split": ask.split, "id": image})
        find = "images" if ask.find == "image" else "captions"
        answers.append({"split": ask.split, "find": find, "results": hits})
    return answers


async def picture(served: Served, request: Request) -> Response:
    """GET /api/picture: an image of the data set by its id."""
    split = served.split(request.query_params.get("split"))
    id_ = request.query_params.get("id", "")
    searcher = served.searchers[split]
    if searcher.picture(id_) is None:
        raise HTTPException(404, "no image of that id here")
    try:
        data = await run_in_threadpool(_small, _Picture(searcher, id_))
    except ImageError as error:
        raise HTTPException(404, "that image cannot be read") from error
    headers = {"cache-control": "private, max-age=3600"}
    return Response(data, media_type="image/jpeg", headers=headers)


class _Picture:
    """An image of a split, by which a small copy is kept."""

    def __init__(self, searcher: Searcher, id_: str) -> None:
        self.searcher, self.id = searcher, id_

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Picture) and (self.searcher is other.searcher, self.id) == (
            True,
            other.id,
        )

    def __hash__(self) -> int:
        return hash((id(self.searcher), self.id))


@lru_cache(PICTURES_KEPT)
def _small(wanted: _Picture) -> bytes:
    image = open_image(wanted.searcher.picture(wanted.id))
    image.thumbnail((PICTURE, PICTURE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()


async def info(served: Served, _request: Request) -> Response:
    """GET /api/info."""
    first = next(iter(served.searchers.values()))
    return json_response(
        {
            "name": first.name,
            "kind": "run" if first.run else "model",
            "models": [store.spec.model.name for store in first.stores],
            "dataset": first.dataset,
            "splits": {
                name: {side + "s": len(searcher.index(side).ids) for side in ("image", "caption")}
                for name, searcher in served.searchers.items()
            },
            "limits": {
                "bytes": served.settings.most_bytes,
                "pixels": served.settings.most_pixels,
                "top": MOST_TOP,
            },
            "version": __version__,
        }
    )


async def metrics(served: Served, _request: Request) -> Response:
    """GET /metrics."""
    return Response(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)
