"""Endpoints of machines: the device login, and what an owner sees and does about it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.accounts import device_login
from darkbloom_provider.coordinator.accounts.people import bearer_of, digest
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE, SESSION, admitted
from darkbloom_provider.coordinator.rest.replies import (
    ApiError,
    json_reply,
    read_json,
    rfc3339,
    text_field,
)
from darkbloom_provider.coordinator.rest.shapes import (
    COUNT,
    NON_EMPTY,
    TEXT,
    TIME,
    Operation,
    array,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.services import Services

_PUBLIC_DOMAIN: Final = "darkbloom.dev"
_CODE = record(user_code=NON_EMPTY)
_CODE_ERRORS: Final = (404, 409, 410)


def endpoints(services: Services) -> list[Endpoint]:
    """The machines' endpoints, bound to the coordinator's parts."""
    machine, owner = _Machine(services), _Owner(services)
    at_the_door, typed = ANYONE.limited("device"), SESSION.limited("financial")
    return [
        Endpoint(
            "POST",
            "/v1/device/code",
            machine.code,
            at_the_door,
            Operation(
                "Begin to link a machine",
                record(
                    device_code=TEXT,
                    user_code=TEXT,
                    verification_uri=TEXT,
                    expires_in=COUNT,
                    interval=COUNT,
                ),
                errors=(500,),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/device/token",
            machine.token,
            at_the_door,
            Operation(
                "Ask whether the code was approved. Its token is given once",
                record(
                    status=one_of("authorization_pending", "authorized"),
                    token=optional(TEXT),
                    account_id=optional(TEXT),
                ),
                record(device_code=NON_EMPTY),
                errors=(404, 410),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/device/revoke",
            machine.revoke,
            at_the_door,
            Operation(
                "Give up the token that is in the `Authorization` header",
                record(status=one_of("revoked")),
                errors=(401,),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/device/pending",
            owner.pending,
            typed,
            Operation(
                "What is known of a code before it is approved or denied",
                record(user_code=TEXT, created_at=TIME, expires_at=TIME),
                query={"user_code": NON_EMPTY},
                required_query=("user_code",),
                errors=_CODE_ERRORS,
            ),
        ),
        Endpoint(
            "POST",
            "/v1/device/approve",
            owner.approve,
            typed,
            Operation(
                "Let the machine that shows this code work for the account",
                record(status=one_of("approved"), message=TEXT),
                _CODE,
                errors=_CODE_ERRORS,
            ),
        ),
        Endpoint(
            "POST",
            "/v1/device/deny",
            owner.deny,
            typed,
            Operation(
                "Make a code worthless",
                record(status=one_of("denied")),
                _CODE,
                errors=_CODE_ERRORS,
            ),
        ),
        Endpoint(
            "GET",
            "/v1/me/devices",
            owner.listed,
            SESSION,
            Operation(
                "The machines whose tokens are active",
                record(devices=array(record(id=TEXT, label=TEXT, created_at=TIME))),
            ),
        ),
        Endpoint(
            "DELETE",
            "/v1/me/devices",
            owner.unlink,
            SESSION,
            Operation(
                "Revoke the token of a machine of the account",
                record(status=one_of("revoked")),
                record(id=NON_EMPTY),
                errors=(404,),
            ),
        ),
    ]


class _Machine:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def code(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        started = await services.db.write(
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
        body = await read_json(request, error_type="invalid_request")
        device_code = text_field(body, "device_code", error_type="invalid_request")
        answer = await services.db.write(
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

    async def revoke(self, request: Request) -> Response:
        now = self._services.clock()
        token = bearer_of(request.headers.get("authorization")) or ""
        if not await self._services.db.write(lambda c: device_login.revoke(c, token, now=now)):
            raise ApiError(
                HTTPStatus.UNAUTHORIZED, "authentication_error", "this is not an active token"
            )
        self._services.on_token_revoked(digest(token))
        return json_reply({"status": "revoked"})


class _Owner:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def pending(self, request: Request) -> Response:
        now = self._services.clock()
        given = dict(request.query_params)
        user_code = text_field(given, "user_code", error_type="invalid_request")
        found = await self._services.db.read(lambda c: device_login.pending(c, user_code, now=now))
        return json_reply(
            {
                "user_code": found.user_code,
                "created_at": rfc3339(found.created_at),
                "expires_at": rfc3339(found.expires_at),
            }
        )

    async def approve(self, request: Request) -> Response:
        now, account_id = self._services.clock(), admitted(request).account_id
        user_code = await _user_code(request)
        await self._services.db.write(
            lambda c: device_login.approve(c, user_code, account_id=account_id, now=now)
        )
        message = "The machine is linked. It will work for your account from its next connection."
        return json_reply({"status": "approved", "message": message})

    async def deny(self, request: Request) -> Response:
        now, user_code = self._services.clock(), await _user_code(request)
        await self._services.db.write(lambda c: device_login.deny(c, user_code, now=now))
        return json_reply({"status": "denied"})

    async def listed(self, request: Request) -> Response:
        account_id = admitted(request).account_id
        devices = await self._services.db.read(lambda c: device_login.linked_devices(c, account_id))
        return json_reply(
            {
                "devices": [
                    {"id": d.id, "label": d.label, "created_at": rfc3339(d.created_at)}
                    for d in devices
                ]
            }
        )

    async def unlink(self, request: Request) -> Response:
        now, account_id = self._services.clock(), admitted(request).account_id
        device_id = text_field(await read_json(request), "id")
        revoked = await self._services.db.write(
            lambda c: device_login.unlink(c, device_id, account_id=account_id, now=now)
        )
        if revoked is None:
            raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "this machine is not linked to you")
        self._services.on_token_revoked(revoked)
        return json_reply({"status": "revoked"})


async def _user_code(request: Request) -> str:
    body = await read_json(request, error_type="invalid_request")
    return text_field(body, "user_code", error_type="invalid_request")


def _verification_uri(console_url: str | None, request: Request) -> str:
    if console_url is not None:
        return f"{console_url.rstrip('/')}/link"
    host = request.headers.get("host", "")
    secure = request.url.scheme == "https" or _PUBLIC_DOMAIN in host
    return f"{'https' if secure else 'http'}://{host}/link"
