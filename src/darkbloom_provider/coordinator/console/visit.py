"""One request of a browser: who it is, what it brought, and how to answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

from sqlalchemy import Connection
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from darkbloom_provider.coordinator.accounts.people import User
from darkbloom_provider.coordinator.console import csrf
from darkbloom_provider.coordinator.console.api import Api, Reply
from darkbloom_provider.coordinator.console.rendering import Assets, Pages
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.logs import Secret

T = TypeVar("T")

NOTICES: Final[Mapping[str, str]] = {
    "linked": "The machine is linked. It works for your account from its next connection.",
    "denied": "The code is worthless now. Nothing was linked.",
    "unlinked": "The machine is unlinked. It can be linked again with: darkbloom login",
    "revoked": "The key is revoked. Programs that use it are refused from now on.",
    "bought": "This is your balance now. A payment may take a moment to arrive.",
    "redeemed": "The invite code was added to your credit.",
    "password": "Your password is changed. You were signed out everywhere else.",
    "signed_out": "You are signed out.",
    "signed_up": "If this address had no account, it has one now. Sign in with your password.",
    "payouts": "This is where your payout account stands.",
    "withdrawn": "Your withdrawal is noted. What becomes of it is in the list below.",
}
"""What a page may be told to say after a form: an address names one, and cannot word its own."""


@dataclass(frozen=True, slots=True)
class Console:
    """The parts that every page is given."""

    services: Services
    hub: Hub
    api: Api
    pages: Pages
    assets: Assets


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, looked at."""

    console: Console
    request: Request
    user: User | None
    session: Secret | None
    """The session token, if it is good."""
    proof: str
    """What this visitor's forms carry."""
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def query(self) -> QueryParams:
        """What stands behind the question mark."""
        return self.request.query_params

    @property
    def owner(self) -> User:
        """The visitor of a page that only people who signed in get to."""
        assert self.user is not None  # noqa: S101 - the gate has seen to it
        return self.user

    @property
    def base_url(self) -> str:
        """Where programs and machines find this coordinator, without a slash at the end."""
        return (self.console.services.console_url or str(self.request.base_url)).rstrip("/")

    async def read(self, view: Callable[[Connection], T]) -> T:
        """Read from the ledger, all at one point in time."""
        return await self.console.services.db.read(view)

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Call the API as this visitor."""
        client = self.request.client
        return await self.console.api.call(
            method,
            path,
            body,
            session=self.session,
            client=None if client is None else (client.host, client.port),
            host=self.request.headers.get("host"),
            query=query,
            headers=headers,
        )

    def page(
        self, template: str, view: object = None, *, error: str = "", status: int = HTTPStatus.OK
    ) -> Response:
        """A page, with the notice that its address names."""
        return self.console.pages.html(
            template,
            {
                "view": view,
                "user": self.user,
                "path": self.request.url.path,
                "csrf_field": csrf.FIELD,
                "csrf_proof": self.proof,
                "notice": "" if error else NOTICES.get(self.query.get("done", ""), ""),
                "error": error,
            },
            status=status,
        )


def go(path: str, **query: str) -> Response:
    """Send a browser on to another page of ours, with a plain GET."""
    target = f"{path}?{urlencode(query)}" if query else path
    return RedirectResponse(target, HTTPStatus.SEE_OTHER)


def leave(visit: Visit, url: str) -> Response:
    """Send a browser on, after a form, to where a service of ours or another's goes on.

    A form must not be answered with a redirect to another site: browsers hold that against our own
    policy. So the visitor's browser goes there from a page.
    """
    if urlsplit(url).netloc == visit.request.headers.get("host"):
        return go(url)
    return passing(visit, url, urlsplit(url).hostname or "")


def passing(visit: Visit, url: str, name: str) -> Response:
    """A page that goes on to another by itself."""
    response = visit.page("leave.html", {"url": url, "name": name})
    response.headers["Refresh"] = f"0; url={url}"
    return response
