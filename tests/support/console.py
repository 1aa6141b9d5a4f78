"""A visitor of the console: a client that keeps cookies and sends forms as a browser would."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.app import application, desk_endpoints
from darkbloom_provider.coordinator.console.app import with_console
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.settings import Policy, Settings
from darkbloom_provider.coordinator.sources import Sources
from support.desk import BASE, Desk, front_desk
from support.sessions import connected

PASSWORD = "a long and boring password"


class Document(HTMLParser):
    """What tests look for in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.forms: list[dict[str, Any]] = []
        self.words: list[str] = []
        self.feed(text)

    @property
    def text(self) -> str:
        """The words of the page, with single blanks."""
        return re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "form":
            self.forms.append({**given, "fields": {}})
        if tag in {"input", "button", "select"} and self.forms and "name" in given:
            self.forms[-1]["fields"][given["name"]] = given.get("value", "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def form(self, action: str) -> dict[str, str]:
        """The fields of the form that is sent there, as they would be sent."""
        sent = (f for f in self.forms if f.get("method") == "post" and f["action"] == action)
        return dict(next(sent)["fields"])


@dataclass(slots=True)
class Visitor:
    """One browser."""

    client: httpx.AsyncClient
    desk: Desk
    hub: Hub

    async def see(self, path: str, *, status: int = 200) -> Document:
        """A page."""
        reply = await self.client.get(path)
        assert reply.status_code == status, (path, reply.status_code, reply.headers)
        return Document(reply.text)

    async def send(self, page: str, action: str, **fields: str) -> httpx.Response:
        """A form of a page, filled in."""
        document = await self.see(page)
        return await self.client.post(action, data=document.form(action) | fields)

    def connect(self, account: str, **changes: Any) -> Session:
        """Let a machine of an account be connected, without a socket."""
        clock = self.desk.clock
        session = connected(account, now=clock(), monotonic=clock.monotonic(), **changes)
        self.hub.registry.add(session)
        return session

    async def sign_up(self, email: str = "owner@example.org") -> str:
        """Open an account and be signed in; its id."""
        reply = await self.send("/sign-up", "/sign-up", email=email, password=PASSWORD)
        assert reply.status_code == 303, Document(reply.text).text
        assert reply.headers["location"] == "/earn"
        users = await self.desk.services.db.read(_users)
        return users[email]


def _users(connection: Connection) -> dict[str, str]:
    return {user.email: user.account_id for user in people.list_users(connection)}


@contextlib.asynccontextmanager
async def visitor(directory: Path, **changes: Any) -> AsyncIterator[Visitor]:
    """A browser in front of a fresh coordinator where everybody may sign up."""
    async with front_desk(directory, **{"policy": Policy(sign_up="open"), **changes}) as desk:
        services = desk.services
        sources = Sources(now=desk.clock, monotonic=desk.clock.monotonic)
        hub = Hub(Settings(directory), sources)
        app = with_console(application(desk_endpoints(services), services), services, hub)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            yield Visitor(client, desk, hub)
