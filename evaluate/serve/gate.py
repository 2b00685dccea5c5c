"""What every request passes first: the token, the headers, the counters, and the last net."""

from __future__ import annotations

import hmac
import json
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hada.evaluate.serve.metrics import Metrics
from hada.evaluate.serve.settings import Settings
from hada.extract.common.console import say

# The page, its description and the state of the server need no token: they hold no data.
OPEN = ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/health", "/favicon.ico")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Outermost:
    """Checks the token, counts, sets headers, and turns what nobody expected into one line."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.encode() not in names
                ]
            await send(message)

        try:
            if self._allowed(scope):
                await self._app(scope, receive, sending)
            else:
                answer = error_response(401, "send the server's token: Authorization: Bearer TOKEN")
                answer.headers["www-authenticate"] = "Bearer"
                await answer(scope, receive, sending)
        except ClientDisconnect:
            status = status or 499
        except Exception as error:
            say(f"{scope['method']} {scope['path']}: {type(error).__name__}: {error}")
            if not status:
                answer = error_response(500, "the server failed; its log says why")
                await answer(scope, receive, sending)
        finally:
            self._count(scope, status, time.monotonic() - began)

    def _allowed(self, scope: Scope) -> bool:
        token = self._settings.token
        if token is None or scope["path"] in OPEN:
            return True
        sent = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(sent, b"Bearer " + token.encode())

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # By route, not by what was asked for, which may be anything.
        known = "route" in scope or "endpoint" in scope
        path = scope["path"] if known else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)


def error_response(status: int, text: str) -> Response:
    """What was wrong, as every error is said."""
    return json_response({"error": text}, status)


def json_response(value: Any, status: int = 200) -> Response:
    """Plain values as JSON."""
    # Escaped, so that half characters in captions are no error.
    return Response(json.dumps(value), status, media_type="application/json")
