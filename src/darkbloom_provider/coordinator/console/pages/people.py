"""The way in and out: home, signing up, in and out, and the account itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from darkbloom_provider.coordinator.accounts.session_tokens import LIFETIME
from darkbloom_provider.coordinator.console import gate
from darkbloom_provider.coordinator.console.api import Reply
from darkbloom_provider.coordinator.console.forms import local_path
from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.visit import Visit, go
from darkbloom_provider.coordinator.earnings import views

HOME: Final = "/earn"


async def home(visit: Visit) -> Response:
    """What this is, for people who came by."""
    if visit.user is not None:
        return go(HOME)
    totals = await visit.read(lambda c: views.network_totals(c, since=None))
    connected = visit.console.services.connected_providers()
    view = {"totals": totals, "providers": connected, "sign_up": _rule(visit)}
    return visit.page("home.html", view)


async def setup(visit: Visit) -> Response:
    """How a Mac comes to work for this network."""
    return visit.page("setup.html", {"base_url": visit.base_url})


async def sign_in_form(visit: Visit) -> Response:
    """Ask for address and password."""
    if visit.user is not None:
        return go(_next(visit.query.get("next", "")))
    return _sign_in(visit, "", visit.query.get("next", ""))


async def sign_in(visit: Visit) -> Response:
    """Begin a session."""
    email, wanted = visit.form.get("email", ""), visit.form.get("next", "")
    reply = await _begin(visit, email, visit.form.get("password", ""))
    if not reply.ok:
        return _sign_in(visit, email, wanted, error=reply.message, status=reply.status)
    return _begun(visit, reply, _next(wanted))


async def sign_up_form(visit: Visit) -> Response:
    """Ask for what an account needs here."""
    if visit.user is not None:
        return go(HOME)
    return _sign_up(visit, "", visit.query.get("invite", ""))


async def sign_up(visit: Visit) -> Response:
    """Open an account and sign in. Who already has one learns only that they may sign in."""
    email, password = visit.form.get("email", ""), visit.form.get("password", "")
    invite = visit.form.get("invite_code", "").strip()
    body = {"email": email, "password": password, "invite_code": invite}
    reply = await visit.ask("POST", "/v1/auth/sign-up", body)
    if not reply.ok:
        return _sign_up(visit, email, invite, error=reply.message, status=reply.status)
    begun = await _begin(visit, email, password)
    return _begun(visit, begun, HOME) if begun.ok else go(gate.SIGN_IN, done="signed_up")


async def sign_out(visit: Visit) -> Response:
    """End this session, or all of the account's."""
    everywhere = visit.form.get("everywhere") == "yes"
    await visit.ask("POST", "/v1/auth/sign-out", {"everywhere": everywhere})
    response = go(gate.SIGN_IN, done="signed_out")
    gate.drop_cookie(response, gate.SESSION_COOKIE, secure=_secure(visit))
    return response


async def account(visit: Visit) -> Response:
    """The visitor's own account."""
    return visit.page("account.html")


async def change_password(visit: Visit) -> Response:
    """Replace the password. Every other session ends."""
    body = {
        "current_password": visit.form.get("current_password", ""),
        "new_password": visit.form.get("new_password", ""),
    }
    reply = await visit.ask("POST", "/v1/auth/password", body)
    if not reply.ok:
        return visit.page("account.html", error=reply.message, status=reply.status)
    return _begun(visit, reply, "/account?done=password")


async def _begin(visit: Visit, email: str, password: str) -> Reply:
    return await visit.ask("POST", "/v1/auth/sign-in", {"email": email, "password": password})


def _begun(visit: Visit, reply: Reply, target: str) -> Response:
    response = go(target)
    gate.set_cookie(
        response,
        gate.SESSION_COOKIE,
        str(reply.document["token"]),
        secure=_secure(visit),
        seconds=int(LIFETIME.total_seconds()),
    )
    return response


def _sign_in(
    visit: Visit, email: str, wanted: str, *, error: str = "", status: int = HTTPStatus.OK
) -> Response:
    view = {"email": email, "next": _next(wanted), "sign_up": _rule(visit)}
    return visit.page("sign_in.html", view, error=error, status=status)


def _sign_up(
    visit: Visit, email: str, invite: str, *, error: str = "", status: int = HTTPStatus.OK
) -> Response:
    view = {"email": email, "invite_code": invite, "sign_up": _rule(visit)}
    return visit.page("sign_up.html", view, error=error, status=status)


def _rule(visit: Visit) -> str:
    return visit.console.services.policy.sign_up


def _next(wanted: str) -> str:
    return local_path(wanted, HOME)


def _secure(visit: Visit) -> bool:
    return gate.is_secure(visit.console, visit.request)


PAGES: Final = (
    Page("/", home, private=False),
    Page("/setup", setup, private=False),
    Page("/sign-in", sign_in_form, sign_in, private=False),
    Page("/sign-up", sign_up_form, sign_up, private=False),
    Page("/sign-out", None, sign_out),
    Page("/account", account, change_password),
)
