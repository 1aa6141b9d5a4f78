"""What every reply carries: the request's id and the browser's permission. Pure ASGI."""

from __future__ import annotations

import random
import re
import traceback
from collections.abc import Callable
from pathlib import PurePath
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkbloom_provider import logs
from darkbloom_provider.coordinator.metrics import OTHER, Metrics
from darkbloom_provider.coordinator.rest import replies

_PLACES: Final = 4
_INTERNAL_ERROR: Final = 1011
_log = logs.get("coordinator")

DEFAULT_ORIGIN: Final = "https://console.darkbloom.dev"

_ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
_ID_BITS: Final = 5
_ID_MASK: Final = 2**_ID_BITS - 1
_ID_LENGTH: Final = 12
_ACCEPTABLE_ID: Final = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)


class RequestIdMiddleware:
    """Answers with the caller's `X-Request-ID`, or with one of our own.

    `request.state.request_id` holds it. A caller's id that is too long or not printable is
    replaced: it would end up in logs.
    """

    def __init__(self, app: ASGIApp, rng: random.Random) -> None:
        self._app = app
        self._rng = rng

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "").strip()
        chosen = given if _ACCEPTABLE_ID.fullmatch(given) else self._fresh()
        scope.setdefault("state", {})["request_id"] = chosen

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = chosen
            await send(message)

        await self._app(scope, receive, stamped)

    def _fresh(self) -> str:
        # One draw for all characters: each draw asks the system.
        bits = self._rng.getrandbits(_ID_BITS * _ID_LENGTH)
        return "".join(
            _ID_ALPHABET[bits >> shift & _ID_MASK]
            for shift in range(0, _ID_BITS * _ID_LENGTH, _ID_BITS)
        )


class MetricsMiddleware:
    """Measures how long each answer takes to begin, by the path that the request matched."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, monotonic: Callable[[], float], route: str
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._monotonic = monotonic
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, state = self._monotonic(), scope.setdefault("state", {})

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route, seconds = state.get(self._route, OTHER), self._monotonic() - begun
                self._metrics.answered(scope["method"], route, message["status"], seconds)
            await send(message)

        await self._app(scope, receive, measured)


class FailureMiddleware:
    """Ends a request whose handler crashed, and logs where; never what it said.

    The server would log the error's message and its chain, which may quote a prompt or a token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001 - the last one who can answer
            _log.error("handler_crashed", error=type(error).__name__, at=_places(error))
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": _INTERNAL_ERROR})
            elif not started:
                reply = replies.reply_to(HTTPConnection(scope), replies.api_error_of(error))
                await reply(scope, receive, send)


def _places(error: BaseException) -> str:
    """Where an error came from, innermost last: files and lines, without any value."""
    frames = traceback.extract_tb(error.__traceback__)[-_PLACES:]
    return " ".join(f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in frames)


class CorsMiddleware:
    """Lets the console's pages call this coordinator; answers every OPTIONS itself, with 204."""

    def __init__(self, app: ASGIApp, origin: str = DEFAULT_ORIGIN) -> None:
        self._app = app
        self._headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": "Content-Type, Authorization",
            "Access-Control-Allow-Credentials": "true",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=self._headers)(scope, receive, send)
            return

        async def permitted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, permitted)
