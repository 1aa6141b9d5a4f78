"""Endpoints of people: signing up, in and out, passwords, API keys."""

from __future__ import annotations

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.accounts import api_keys, sign_in
from darkbloom_provider.coordinator.accounts.session_tokens import Session
from darkbloom_provider.coordinator.accounts.sign_in import SignedIn
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE, SESSION, address_of, admitted
from darkbloom_provider.coordinator.rest.replies import (
    ApiError,
    json_reply,
    read_json,
    rfc3339,
    text_field,
)
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    NON_EMPTY,
    TEXT,
    TIME,
    Operation,
    array,
    maybe,
    one_of,
    record,
)
from darkbloom_provider.coordinator.services import Services

_SESSION = record(token=TEXT, account_id=TEXT, email=TEXT, admin=BOOLEAN, expires_at=TIME)
_KEY = record(id=TEXT, name=TEXT, hint=TEXT, created_at=TIME)


def endpoints(services: Services) -> list[Endpoint]:
    """The account endpoints, bound to the coordinator's parts."""
    people, keys = _People(services), _Keys(services)
    at_the_door = ANYONE.limited("sign_in")
    return [
        Endpoint(
            "POST",
            "/v1/auth/sign-up",
            people.sign_up,
            at_the_door,
            Operation(
                "Open an account. Answers the same if the address has one already; sign in next",
                record(status=one_of("accepted")),
                record(email=NON_EMPTY, password=NON_EMPTY, invite_code=maybe(TEXT)),
                status=HTTPStatus.ACCEPTED,
                errors=(403, 404),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/auth/sign-in",
            people.sign_in,
            at_the_door,
            Operation(
                "Begin a session",
                _SESSION,
                record(email=NON_EMPTY, password=NON_EMPTY),
                errors=(401,),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/auth/session",
            people.session,
            SESSION,
            Operation(
                "Whose session this is",
                record(account_id=TEXT, email=TEXT, admin=BOOLEAN, expires_at=TIME),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/auth/sign-out",
            people.sign_out,
            SESSION,
            Operation(
                "End this session, or with `everywhere` all sessions of the account",
                record(status=one_of("signed_out")),
                record(everywhere=maybe(BOOLEAN)),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/auth/password",
            people.password,
            SESSION.limited("financial"),
            Operation(
                "Change the password. All sessions end; the reply begins a new one",
                _SESSION,
                record(current_password=NON_EMPTY, new_password=NON_EMPTY),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/auth/keys",
            keys.listed,
            SESSION,
            Operation("The account's active API keys", record(keys=array(_KEY))),
        ),
        Endpoint(
            "POST",
            "/v1/auth/keys",
            keys.create,
            SESSION.limited("financial"),
            Operation(
                "Make an API key. It is shown this once",
                record(api_key=TEXT, account_id=TEXT, id=TEXT, name=TEXT),
                record(name=maybe(TEXT)),
            ),
        ),
        Endpoint(
            "DELETE",
            "/v1/auth/keys",
            keys.revoke,
            SESSION,
            Operation(
                "Revoke an API key of the account, by its text or by the id it is listed under",
                record(status=one_of("revoked")),
                {
                    **record(key=maybe(TEXT), id=maybe(TEXT)),
                    "anyOf": [{"required": ["key"]}, {"required": ["id"]}],
                },
            ),
        ),
    ]


class _People:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def sign_up(self, request: Request) -> Response:
        body = await read_json(request)
        await sign_in.sign_up(
            self._services,
            text_field(body, "email"),
            text_field(body, "password", exact=True),
            text_field(body, "invite_code", default=""),
        )
        return json_reply({"status": "accepted"}, HTTPStatus.ACCEPTED)

    async def sign_in(self, request: Request) -> Response:
        body = await read_json(request)
        email = text_field(body, "email")
        password = text_field(body, "password", exact=True)
        begun = await sign_in.sign_in(self._services, email, password, address=address_of(request))
        return _begun(begun)

    async def session(self, request: Request) -> Response:
        caller = admitted(request)
        return json_reply(
            {
                "account_id": caller.account_id,
                "email": caller.user.email if caller.user else "",
                "admin": caller.is_admin,
                "expires_at": rfc3339(_session_of(request).expires_at),
            }
        )

    async def sign_out(self, request: Request) -> Response:
        everywhere = (await read_json(request, empty=True)).get("everywhere") is True
        await sign_in.sign_out(self._services, _session_of(request), everywhere=everywhere)
        return json_reply({"status": "signed_out"})

    async def password(self, request: Request) -> Response:
        user = admitted(request).user
        assert user is not None  # noqa: S101 - every session is a user's
        body = await read_json(request)
        current = text_field(body, "current_password", exact=True)
        new = text_field(body, "new_password", exact=True)
        return _begun(await sign_in.change_password(self._services, user, current, new))


class _Keys:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def listed(self, request: Request) -> Response:
        account_id = admitted(request).account_id
        keys = await self._services.db.read(lambda c: api_keys.list_api_keys(c, account_id))
        return json_reply(
            {
                "keys": [
                    {
                        "id": key.id,
                        "name": key.name,
                        "hint": key.hint,
                        "created_at": rfc3339(key.created_at),
                    }
                    for key in keys
                ]
            }
        )

    async def create(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        account_id = admitted(request).account_id
        name = text_field(await read_json(request, empty=True), "name", default="")
        key = await services.db.write(
            lambda c: api_keys.create_api_key(
                c, account_id, random_hex=services.random_hex, now=now, name=name
            )
        )
        text = key.reveal()
        shown = {"api_key": text, "account_id": account_id}
        return json_reply({**shown, "id": api_keys.key_id(text), "name": name})

    async def revoke(self, request: Request) -> Response:
        now, account_id = self._services.clock(), admitted(request).account_id
        body = await read_json(request, error_type="bad_request")
        listed = text_field(body, "id", default="", error_type="bad_request")
        key = text_field(body, "key", default="", error_type="bad_request")
        if not (listed or key):
            raise ApiError(HTTPStatus.BAD_REQUEST, "bad_request", "key is required")
        if listed:
            revoked = await self._services.db.write(
                lambda c: api_keys.revoke_api_key_by_id(c, listed, account_id=account_id, now=now)
            )
        else:
            revoked = await self._services.db.write(
                lambda c: api_keys.revoke_api_key(c, key, account_id=account_id, now=now)
            )
        if not revoked:
            raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", "this key is not yours to revoke")
        return json_reply({"status": "revoked"})


def _begun(begun: SignedIn) -> Response:
    return json_reply(
        {
            "token": begun.token.reveal(),
            "account_id": begun.user.account_id,
            "email": begun.user.email,
            "admin": begun.user.is_admin,
            "expires_at": rfc3339(begun.expires_at),
        },
        headers={"Cache-Control": "no-store"},
    )


def _session_of(request: Request) -> Session:
    session = admitted(request).session
    assert session is not None  # noqa: S101 - the gate asked for a session
    return session
