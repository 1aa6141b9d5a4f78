"""An endpoint as it is declared: method, path, who may call it, what it takes and answers.

Declarations become routes in one place, each behind its gate. There is no other way to a route, so
no endpoint can be without an owner's decision on who may call it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from darkbloom_provider.coordinator.rest.guards import Access, Gate
from darkbloom_provider.coordinator.rest.shapes import Operation
from darkbloom_provider.coordinator.services import Services

Handler = Callable[[Request], Awaitable[Response]] | ASGIApp
"""A function of a request, or an ASGI application for an endpoint that streams."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    access: Access
    operation: Operation
    """What it takes and answers, for the OpenAPI document."""


def routes(endpoints: Iterable[Endpoint], services: Services) -> list[Route]:
    """The endpoints as Starlette's routes: one a path, so that `Allow` names all its methods."""
    paths: dict[str, dict[str, ASGIApp]] = {}
    for endpoint in endpoints:
        methods = paths.setdefault(endpoint.path, {})
        if endpoint.method in methods:
            raise ValueError(f"{endpoint.method} {endpoint.path} is declared twice")
        handler = _application(endpoint.handler)
        methods[endpoint.method] = Gate(handler, services, endpoint.access, endpoint.path)
    return [
        Route(path, ByMethod(methods), methods=list(methods)) for path, methods in paths.items()
    ]


def _application(handler: Handler) -> ASGIApp:
    if inspect.isfunction(handler) or inspect.ismethod(handler):
        return request_response(handler)
    return cast("ASGIApp", handler)


class ByMethod:
    """The applications behind one path."""

    _SAME_AS: Final = {"HEAD": "GET"}

    def __init__(self, methods: dict[str, ASGIApp]) -> None:
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. The route has refused every other method."""
        method: str = scope["method"]
        method = self._SAME_AS.get(method, method)
        await self._methods[method](scope, receive, send)
