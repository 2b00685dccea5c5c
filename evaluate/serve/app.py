"""The server as an ASGI application.

A request holds texts, images and ids, never a path; an id that the data set does not list has no
picture. Nothing that is sent is written to a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve import looks
from hada.evaluate.serve.batches import Ask, Batches
from hada.evaluate.serve.gate import Outermost, error_response, json_response
from hada.evaluate.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from hada.evaluate.serve.openapi import as_page, openapi
from hada.evaluate.serve.page import PAGE, SCRIPT, STYLE, framed
from hada.evaluate.serve.pictures import picture
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
from hada.evaluate.serve.served import Served, answered, one_of, sent_image, whole_number
from hada.evaluate.serve.settings import Settings
from hada.extract import __version__
from hada.extract.spec import SideName


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
            route("/api/look", looks.by_text, "POST"),
            route("/api/look/image", looks.by_image, "POST"),
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
    ask = Ask("caption", checked_text(asked.text), split, _side(asked.find), asked.top, asked.ranks)
    return json_response((await _answered(served, request, [ask]))[0])


async def by_image(served: Served, request: Request) -> Response:
    """POST /api/image: the body is the file."""
    split = served.split(request.query_params.get("split"))
    find = one_of(request, "find", ("captions", "images"))
    top = whole_number(request, "top", 10)
    ranks = one_of(request, "ranks", ("false", "true")) == "true"
    image = await sent_image(served, request)
    ask = Ask("image", image, split, _side(find), top, ranks)
    return json_response((await _answered(served, request, [ask]))[0])


async def by_batch(served: Served, request: Request) -> Response:
    """POST /api/batch."""
    limits = served.settings
    body = await read_body(request, TEXT_BYTES + 2 * limits.most_bytes)
    asked: BatchQuery = parsed(body, BatchQuery)
    if not asked.texts and not asked.images:
        raise HTTPException(400, "the batch is empty: expected texts or images")
    split = served.split(asked.split)
    side, more = _side(asked.find or "images"), (asked.top, asked.ranks)
    asks = [Ask("caption", checked_text(text), split, side, *more) for text in asked.texts]
    side = _side(asked.find or "captions")
    for text in asked.images:
        data = from_base64(text, limits.most_bytes)
        image = await run_in_threadpool(decoded, data, limits.most_pixels)
        asks.append(Ask("image", image, split, side, *more))
    return json_response({"answers": await _answered(served, request, asks)})


def _side(find: str) -> SideName:
    return "image" if find == "images" else "caption"


async def _answered(served: Served, request: Request, asks: list[Ask]) -> list[dict[str, Any]]:
    """The results as they are sent: without paths, with the address of each picture."""
    for ask in asks:
        served.metrics.queries.labels("text" if ask.kind == "caption" else "image").inc()
    found = await answered(request, served.batches.answer(asks))
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
            "looks": first.run is not None,
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
