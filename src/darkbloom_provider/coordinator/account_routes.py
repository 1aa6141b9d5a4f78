"""Endpoints of accounts: linking a machine, revoking its token, API keys."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from darkbloom_provider.coordinator import accounts, device_login
from darkbloom_provider.coordinator.accounts import bearer_of, digest
from darkbloom_provider.coordinator.device_login import DeviceLoginError
from darkbloom_provider.coordinator.guards import caller
from darkbloom_provider.coordinator.replies import ApiError, json_reply, read_json
from darkbloom_provider.coordinator.services import Services

T = TypeVar("T")

_PUBLIC_DOMAIN: Final = "darkbloom.dev"
_RETRY_AFTER_S: Final = 60


def routes(services: Services) -> list[Route]:
    """The account endpoints, bound to the coordinator's parts."""
    login = _DeviceLogin(services)
    keys = _Keys(services)
    return [
        Route("/v1/device/code", login.code, methods=["POST"]),
        Route("/v1/device/token", login.token, methods=["POST"]),
        Route("/v1/device/approve", login.approve, methods=["POST"]),
        Route("/v1/device/revoke", login.revoke, methods=["POST"]),
        Route("/v1/auth/keys", keys.create, methods=["POST"]),
        Route("/v1/auth/keys", keys.revoke, methods=["DELETE"]),
    ]


class _DeviceLogin:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def code(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        started = await self._step(
            lambda c: device_login.start(c, random_hex=services.random_hex, now=now)
        )
        return json_reply(
            {
                "device_code": started.device_code.reveal(),
                "user_code": started.user_code,
                "verification_uri": _verification_uri(services.console_url, request),
                "expires_in": int(device_login.LIFETIME.total_seconds()),
                "interval": device_login.POLL_INTERVAL_S,
            }
        )

    async def token(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        device_code = _text(await read_json(request, error_type="invalid_request"), "device_code")
        answer = await self._step(
            lambda c: device_login.poll(c, device_code, random_hex=services.random_hex, now=now)
        )
        if answer is None:
            return json_reply({"status": "authorization_pending"})
        return json_reply(
            {
                "status": "authorized",
                "token": answer.token.reveal(),
                "account_id": answer.account_id,
            }
        )

    async def approve(self, request: Request) -> Response:
        now = self._services.clock()
        account_id = (await caller(self._services, request, "session")).account_id
        user_code = _text(await read_json(request, error_type="invalid_request"), "user_code")
        await self._step(
            lambda c: device_login.approve(c, user_code, account_id=account_id, now=now)
        )
        message = "The machine is linked. It will work for your account from its next connection."
        return json_reply({"status": "approved", "message": message})

    async def revoke(self, request: Request) -> Response:
        now = self._services.clock()
        token = bearer_of(request.headers.get("authorization")) or ""
        if not await self._step(lambda c: device_login.revoke(c, token, now=now)):
            raise ApiError(
                HTTPStatus.UNAUTHORIZED, "authentication_error", "this is not an active token"
            )
        self._services.on_token_revoked(digest(token))
        return json_reply({"status": "revoked"})

    async def _step(self, operation: Callable[[Connection], T]) -> T:
        try:
            return await self._services.db.write(operation)
        except DeviceLoginError as error:
            busy = error.status == HTTPStatus.TOO_MANY_REQUESTS
            headers = {"Retry-After": str(_RETRY_AFTER_S)} if busy else None
            raise ApiError(error.status, error.type, error.what, headers) from None


class _Keys:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        account_id = (await caller(services, request, "session")).account_id
        key = await services.db.write(
            lambda c: accounts.create_api_key(
                c, account_id, random_hex=services.random_hex, now=now
            )
        )
        return json_reply({"api_key": key.reveal(), "account_id": account_id})

    async def revoke(self, request: Request) -> Response:
        now = self._services.clock()
        account_id = (await caller(self._services, request, "session")).account_id
        key = _text(await read_json(request, error_type="bad_request"), "key", "bad_request")
        revoked = await self._services.db.write(
            lambda c: accounts.revoke_api_key(c, key, account_id=account_id, now=now)
        )
        if not revoked:
            raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", "this key is not yours to revoke")
        return json_reply({"status": "revoked"})


def _text(document: dict[str, Any], name: str, error_type: str = "invalid_request") -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ApiError(HTTPStatus.BAD_REQUEST, error_type, f"{name} is required")
    return value.strip()


def _verification_uri(console_url: str | None, request: Request) -> str:
    if console_url is not None:
        return f"{console_url.rstrip('/')}/link"
    host = request.headers.get("host", "")
    secure = request.url.scheme == "https" or _PUBLIC_DOMAIN in host
    return f"{'https' if secure else 'http'}://{host}/link"
