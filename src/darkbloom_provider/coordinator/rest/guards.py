"""Who may call an endpoint: declared beside its route, and enforced before its handler runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from darkbloom_provider.coordinator.accounts.people import (
    AuthenticationError,
    Guard,
    Principal,
    authenticate,
    bearer_of,
)
from darkbloom_provider.coordinator.rest.rate_limits import Tier, address_key
from darkbloom_provider.coordinator.services import Services

_CALLER: Final = "caller"
ROUTE: Final = "route"
"""Where the state of a request names the path it matched, as it is declared."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call an endpoint, and how often."""

    guard: Guard | None
    """How sure the endpoint must be of its caller; None lets everybody in."""
    device_token: bool = False
    """Whether it also answers a machine, about its own account."""
    tier: Tier | None = None
    """What a call counts against: by account where there is a caller, else by address."""
    key_header: bool = False
    """Whether the credential may come as `x-api-key` where there is no bearer token: Anthropic's
    clients send it so."""

    def limited(self, tier: Tier) -> Access:
        """The same callers, at the pace of a tier."""
        return replace(self, tier=tier)

    def with_key_header(self) -> Access:
        """The same callers, also with an `x-api-key`."""
        return replace(self, key_header=True)


ANYONE: Final = Access(None)
"""Public, or shown by something in the request itself: a code, a signature, a token to revoke."""
ANY: Final = Access("any")
"""An API key, a session, or the operator's key."""
MACHINE: Final = Access("any", device_token=True)
"""As `ANY`, and the machines of the account too."""
USER: Final = Access("user")
"""A person: by a session or by an API key of theirs."""
SESSION: Final = Access("session")
"""A person who has signed in."""
ADMIN: Final = Access("admin")
"""The operator: by the admin key, or as a user who is an administrator."""
ADMINISTRATOR: Final = Access("administrator")
"""A user who is an administrator: what they change has somebody's name to it."""


class Gate:
    """Lets the right callers through to an endpoint. ASGI, around one route."""

    def __init__(self, app: ASGIApp, services: Services, access: Access, path: str) -> None:
        self._app = app
        self._services = services
        self._access = access
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            AuthenticationError: With the reply's status and type.
            ApiError: 429.
            LedgerUnavailableError: Nobody can be looked up now.
        """
        request = Request(scope)
        scope.setdefault("state", {})[ROUTE] = self._path
        access, principal = self._access, None
        if access.guard is not None:
            principal = await _identified(self._services, _credential(request, access), access)
            scope["state"][_CALLER] = principal
        if access.tier is not None and (principal is None or principal.kind != "admin"):
            by = address_of(request) if principal is None else principal.account_id
            self._services.limiter.admit(access.tier, by)
        await self._app(scope, receive, send)


def admitted(request: Request) -> Principal:
    """Whom the gate let in. Only for endpoints whose access names a guard."""
    principal = request.scope["state"][_CALLER]
    assert isinstance(principal, Principal)  # noqa: S101 - the gate put it there
    return principal


def address_of(request: Request) -> str:
    """Where a request comes from, as the limits count it."""
    return address_key(request.client.host if request.client else None)


async def known_caller(services: Services, request: Request) -> Principal | None:
    """The caller of an endpoint that answers anybody; None without a good credential."""
    bearer = _credential(request, MACHINE)
    if bearer is None:
        return None
    try:
        return await _identified(services, bearer, MACHINE)
    except AuthenticationError:
        return None


def _credential(request: Request, access: Access) -> str | None:
    bearer = bearer_of(request.headers.get("authorization"))
    if bearer is None and access.key_header:
        return request.headers.get("x-api-key", "").strip() or None
    return bearer


async def _identified(services: Services, bearer: str | None, access: Access) -> Principal:
    now, guard = services.clock(), access.guard or "any"
    return await services.db.read(
        lambda connection: authenticate(
            connection,
            bearer,
            identity=services.identity,
            now=now,
            guard=guard,
            device_token=access.device_token,
        )
    )
