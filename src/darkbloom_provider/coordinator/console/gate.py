"""Every page behind one gate: who is there, whether a form is ours, and how errors look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.accounts.people import (
    AuthenticationError,
    Principal,
    User,
    authenticate,
)
from darkbloom_provider.coordinator.console import csrf
from darkbloom_provider.coordinator.console.forms import read_form
from darkbloom_provider.coordinator.console.visit import Console, Visit, go
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.logs import Secret

SESSION_COOKIE: Final = "darkbloom_session"
VISITOR_COOKIE: Final = "darkbloom_visitor"
SIGN_IN: Final = "/sign-in"

Handler = Callable[[Visit], Awaitable[Response]]


class ForeignFormError(DarkbloomError):
    """A form that was not on a page of ours, or on one that is too old."""


@dataclass(frozen=True, slots=True)
class Page:
    """One address: what it shows, and what its form does."""

    path: str
    show: Handler | None
    send: Handler | None = None
    private: bool = True
    """Whether only people who have signed in get to it."""

    @property
    def methods(self) -> list[str]:
        """What it answers to."""
        return [
            method
            for method, handler in (("GET", self.show), ("POST", self.send))
            if handler is not None
        ]


def gate(console: Console, page: Page) -> Callable[[Request], Awaitable[Response]]:
    """The page as Starlette calls it."""

    async def serve(request: Request) -> Response:
        secure = is_secure(console, request)
        try:
            user, session = await _visitor(console, request, secure=secure)
        except LedgerUnavailableError:
            visit = Visit(console, request, None, None, "")
            return _unavailable(visit)
        known = request.cookies.get(cookie_name(VISITOR_COOKIE, secure=secure))
        secret = session.reveal() if session else known
        fresh = None if secret else console.services.random_hex(csrf.VISITOR_BYTES)
        visit = Visit(console, request, user, session, csrf.proof(secret or fresh or ""))
        response = await _answer(page, visit, secret)
        if fresh is not None and page.send is not None and not page.private:
            set_cookie(response, VISITOR_COOKIE, fresh, secure=secure)
        return response

    return serve


async def _answer(page: Page, visit: Visit, secret: str | None) -> Response:
    request = visit.request
    if page.private and visit.user is None:
        here = request.url.path
        if request.url.query:
            here += f"?{request.url.query}"
        # What only a form leads to has nothing to come back to.
        return go(SIGN_IN, next="/earn" if page.show is None else here)
    try:
        return await _handle(page, visit, secret)
    except ForeignFormError as error:
        return failure(visit, HTTPStatus.FORBIDDEN, error.what, next_step=error.next_step or "")
    except ApiError as error:
        return failure(visit, error.status, _sentence(error.message))
    except RefusalError as error:
        return failure(visit, error.status, error.what, next_step=error.next_step or "")
    except LedgerUnavailableError:
        return _unavailable(visit)


async def _handle(page: Page, visit: Visit, secret: str | None) -> Response:
    if visit.request.method != "POST":
        assert page.show is not None  # noqa: S101 - the route takes no other method
        return await page.show(visit)
    assert page.send is not None  # noqa: S101 - the route takes no other method
    form = await read_form(visit.request)
    _check_form(visit, form, secret)
    return await page.send(replace(visit, form=form))


def failure(visit: Visit, status: int, message: str, *, next_step: str = "") -> Response:
    """A page that says what went wrong."""
    return visit.page("error.html", {"message": message, "next_step": next_step}, status=status)


def _unavailable(visit: Visit) -> Response:
    response = failure(
        visit,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The ledger is not available now. Nothing was changed.",
        next_step="Please try again in a few seconds.",
    )
    response.headers["Retry-After"] = "5"
    return response


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _check_form(visit: Visit, form: dict[str, str], secret: str | None) -> None:
    headers = visit.request.headers
    hosts = {headers.get("host", "").lower()}
    if visit.console.services.console_url:
        hosts.add(urlsplit(visit.console.services.console_url).netloc.lower())
    ours = csrf.same_site(
        origin=headers.get("origin"),
        fetch_site=headers.get("sec-fetch-site"),
        hosts=frozenset(hosts),
    )
    if not ours or not csrf.shown(form.get(csrf.FIELD, ""), secret):
        raise ForeignFormError(
            "This form was not sent from a page of this console, or the page was too old",
            next_step="Go back, reload the page, and send it again.",
        )


async def _visitor(
    console: Console, request: Request, *, secure: bool
) -> tuple[User | None, Secret | None]:
    token = request.cookies.get(cookie_name(SESSION_COOKIE, secure=secure))
    if not token:
        return None, None
    services, now = console.services, console.services.clock()

    def look_up(connection: Connection) -> Principal:
        return authenticate(connection, token, identity=services.identity, now=now, guard="session")

    try:
        principal = await services.db.read(look_up)
    except AuthenticationError:
        return None, None
    return principal.user, Secret(token)


def is_secure(console: Console, request: Request) -> bool:
    """Whether the browser came over TLS, as far as we know: a proxy in front says it for us."""
    configured = console.services.console_url
    return (configured or str(request.url)).startswith("https:")


def cookie_name(name: str, *, secure: bool) -> str:
    """The name of a cookie; over TLS one that no other host can set."""
    return f"__Host-{name}" if secure else name


def set_cookie(
    response: Response, name: str, value: str, *, secure: bool, seconds: int | None = None
) -> None:
    """Give the browser a cookie that no script and no other site can use."""
    response.set_cookie(
        cookie_name(name, secure=secure),
        value,
        max_age=seconds,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def drop_cookie(response: Response, name: str, *, secure: bool) -> None:
    """Take a cookie back."""
    response.delete_cookie(
        cookie_name(name, secure=secure),
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


async def not_found(console: Console, request: Request, error: HTTPException) -> Response:
    """The page for an address that is none of ours, or not with this method."""
    secure = is_secure(console, request)
    try:
        user, session = await _visitor(console, request, secure=secure)
    except LedgerUnavailableError:
        user, session = None, None
    proof = csrf.proof(session.reveal()) if session else ""
    visit = Visit(console, request, user, session, proof)
    if error.status_code != HTTPStatus.NOT_FOUND:
        return failure(visit, error.status_code, error.detail)
    view = {
        "title": "Page not found",
        "message": "There is no such page",
        "next_step": "Check the address, or begin at one of the links above.",
    }
    return visit.page("error.html", view, status=error.status_code)


def crashed(console: Console, request: Request) -> Response:
    """The page for a defect of ours. The log says where; nobody else learns more."""
    visit = Visit(console, request, None, None, "")
    return failure(
        visit, HTTPStatus.INTERNAL_SERVER_ERROR, "Something is wrong here. It was noted in the log."
    )
