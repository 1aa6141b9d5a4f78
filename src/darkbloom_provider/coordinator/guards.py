"""Who calls an endpoint, from the request's one `Authorization` header."""

from __future__ import annotations

from starlette.requests import Request

from darkbloom_provider.coordinator.accounts import (
    AuthenticationError,
    Guard,
    Principal,
    authenticate,
    bearer_of,
)
from darkbloom_provider.coordinator.services import Services


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
