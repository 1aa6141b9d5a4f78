"""Who may call an endpoint: declared beside its route, and enforced before its handler runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from darkbloom_provider.coordinator.accounts import (
    AuthenticationError,
    Guard,
    Principal,
    authenticate,
    bearer_of,
)
from darkbloom_provider.coordinator.rate_limits import Tier, address_key
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

    def limited(self, tier: Tier) -> Access:
        """The same callers, at the pace of a tier."""
        return Access(self.guard, self.device_token, tier)


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
            principal = await caller(
                self._services, request, access.guard, device_token=access.device_token
            )
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


async def caller(
    services: Services, request: Request, guard: Guard = "any", *, device_token: bool = False
) -> Principal:
    """The caller, if the endpoint may be used with the credential given.

    Raises:
        AuthenticationError: With the reply's status and type.
        LedgerUnavailableError: Nobody can be looked up now.
    """
    bearer, now = bearer_of(request.headers.get("authorization")), services.clock()
    return await services.db.read(
        lambda connection: authenticate(
            connection,
            bearer,
            identity=services.identity,
            now=now,
            guard=guard,
            device_token=device_token,
        )
    )


async def known_caller(services: Services, request: Request) -> Principal | None:
    """The caller of an endpoint that answers anybody; None without a good credential."""
    if bearer_of(request.headers.get("authorization")) is None:
        return None
    try:
        return await caller(services, request, device_token=True)
    except AuthenticationError:
        return None
