"""A whole coordinator with two users and an administrator, and every way to call it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.routing import Route, WebSocketRoute

from darkbloom_provider.coordinator.app import build_app
from darkbloom_provider.coordinator.ledger.tab import Books
from darkbloom_provider.coordinator.providers.registration import Registrar
from support.credentials import Credentials, Person, every_credential, person
from support.network import Network, network

ADMIN_KEY = "the-operators-own-key"
RELEASE_KEY = "the-builders-own-key"


@dataclass
class House:
    """A network with two users and an administrator."""

    net: Network
    user: Person
    other: Person
    admin: Person
    credentials: Credentials
    http: httpx.AsyncClient

    def routes(self) -> set[tuple[str, str]]:
        """Every method and path of the application."""
        coordinator = self.net.coordinator
        services, hub = coordinator.services, coordinator.hub
        registrar = Registrar(services.db, services.offer, services.policy, hub.sources)
        app = build_app(
            services, hub, registrar, Books(services.db, services.policy, services.clock)
        )
        found = set()
        for route in app.routes:
            if isinstance(route, WebSocketRoute):
                found.add(("WEBSOCKET", route.path))
                continue
            assert isinstance(route, Route), f"{route!r} has no methods to try: teach this test"
            found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
        return found

    async def call(self, route: tuple[str, str], headers: dict[str, str], **more: Any) -> Any:
        return await self.http.request(*route, headers=headers, **more)


@contextlib.asynccontextmanager
async def furnished(directory: Path) -> AsyncIterator[House]:
    """The network, its people and their credentials."""
    async with (
        network(directory, admin_key=ADMIN_KEY, release_key=RELEASE_KEY) as net,
        httpx.AsyncClient(base_url=net.coordinator.base_url, timeout=20) as http,
    ):
        user, other = await person(net, "user"), await person(net, "other")
        admin = await person(net, "admin", admin=True)
        credentials = await every_credential(user, admin, ADMIN_KEY, RELEASE_KEY)
        yield House(net, user, other, admin, credentials, http)
