"""The console as an ASGI application, and in front of the API on one port."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkbloom_provider.coordinator.console import gate
from darkbloom_provider.coordinator.console.api import Api
from darkbloom_provider.coordinator.console.pages import (
    billing,
    calculator,
    earn,
    keys,
    machines,
    network,
    payouts,
    people,
)
from darkbloom_provider.coordinator.console.rendering import HEADERS, Assets, Pages
from darkbloom_provider.coordinator.console.visit import Console
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.rest.middleware import FailureMiddleware
from darkbloom_provider.coordinator.services import Services

PAGES: Final = (
    *people.PAGES,
    *earn.PAGES,
    *calculator.PAGES,
    *payouts.PAGES,
    *machines.PAGES,
    *billing.PAGES,
    *keys.PAGES,
    *network.PAGES,
)


def with_console(api: Starlette, services: Services, hub: Hub) -> ASGIApp:
    """The API with the console around it."""
    assets = Assets()
    console = Console(services, hub, Api(api), Pages(assets), assets)
    return _Front(api, console_app(console))


def console_app(console: Console) -> ASGIApp:
    """The console alone."""

    async def asset(request: Request) -> Response:
        found = console.assets.reply(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return found

    async def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - Starlette picks it by this type
        return await gate.not_found(console, request, error)

    async def crashed(request: Request, _error: Exception) -> Response:
        return gate.crashed(console, request)

    routes = [
        Route(page.path, gate.gate(console, page), methods=page.methods, name=page.path)
        for page in PAGES
    ]
    app = Starlette(
        routes=[*routes, Route("/static/{name}", asset)],
        exception_handlers={HTTPException: not_found, Exception: crashed},
    )
    # Around the whole of it: Starlette sends its last-resort reply from outside all middleware, and
    # then raises the error again.
    return SecurityHeaders(FailureMiddleware(app))


class SecurityHeaders:
    """Sends what keeps a browser from doing more than the page says, with every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, guarded)


class _Front:
    """Two applications on one port. What the API has no route for is a page, or nothing."""

    _API: Final = ("/v1/", "/ws/")

    def __init__(self, api: Starlette, console: ASGIApp) -> None:
        self._api = api
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or self._is_api(scope):
            await self._api(scope, receive, send)
        else:
            await self._console(scope, receive, send)

    def _is_api(self, scope: Scope) -> bool:
        if scope["path"].startswith(self._API):
            return True
        return any(route.matches(scope)[0] is not Match.NONE for route in self._api.routes)
