"""Endpoints of the operator: invites, credit and rewards. Source: the network's admin calls."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, Literal

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.accounts import invites, people
from darkbloom_provider.coordinator.accounts.invites import Invite
from darkbloom_provider.coordinator.accounts.people import User
from darkbloom_provider.coordinator.ledger import idempotency, reservations
from darkbloom_provider.coordinator.ledger.books import Balance
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ADMIN
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.repeatable import once
from darkbloom_provider.coordinator.rest.replies import (
    ApiError,
    json_object,
    json_reply,
    read_body,
    read_json,
    rfc3339,
    text_field,
)
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    COUNT,
    INTEGER,
    NON_EMPTY,
    NUMBER,
    TEXT,
    TIME,
    USD_TEXT,
    Operation,
    array,
    maybe,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.money import MICRO_PER_USD, decimal_usd, parse_usd

Gift = Literal["admin_credit", "admin_reward"]

_IDEMPOTENT: Final = {idempotency.HEADER: TEXT}
_TWO_PLACES: Final = 2
_MAX_NOTE_CHARACTERS: Final = 200
_INVITE: Final = {
    "code": TEXT,
    "amount_usd": USD_TEXT,
    "max_uses": COUNT,
    "expires_at": optional(TIME),
}
_GIFT: Final = record(email=NON_EMPTY, amount_usd=NON_EMPTY, note=maybe(TEXT))
_USER: Final = {"ok": BOOLEAN, "account_id": TEXT, "email": TEXT, "withdrawable": BOOLEAN}


def endpoints(services: Services) -> list[Endpoint]:
    """The operator's endpoints, bound to the coordinator's parts."""
    codes, gifts = _InviteCodes(services), _Gifts(services)
    return [
        Endpoint(
            "POST",
            "/v1/admin/invite-codes",
            codes.create,
            ADMIN.limited("financial"),
            Operation(
                "Make an invite code; without `code` one is drawn",
                record(**_INVITE),
                record(
                    code=maybe(TEXT),
                    amount_usd=NUMBER,
                    max_uses=maybe(INTEGER),
                    expires_at=maybe(TIME),
                ),
                status=HTTPStatus.CREATED,
                errors=(409,),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/admin/invite-codes",
            codes.listed,
            ADMIN,
            Operation(
                "Every invite code",
                record(
                    invite_codes=array(
                        record(**_INVITE, used_count=COUNT, active=BOOLEAN, created_at=TIME)
                    )
                ),
            ),
        ),
        Endpoint(
            "DELETE",
            "/v1/admin/invite-codes",
            codes.deactivate,
            ADMIN,
            Operation(
                "Let nobody redeem a code any more",
                record(status=one_of("deactivated")),
                record(code=NON_EMPTY),
                errors=(404,),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/admin/credit",
            gifts.credit,
            ADMIN,
            Operation(
                "Give a user credit that can be spent and not withdrawn",
                record(**_USER, credited_usd=NUMBER, balance_after=NUMBER),
                _GIFT,
                headers=_IDEMPOTENT,
                errors=(404, 409),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/admin/reward",
            gifts.reward,
            ADMIN,
            Operation(
                "Give a user money that can be withdrawn",
                record(
                    **_USER, rewarded_usd=NUMBER, balance_after=NUMBER, withdrawable_after=NUMBER
                ),
                _GIFT,
                headers=_IDEMPOTENT,
                errors=(404, 409),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/admin/users",
            gifts.users,
            ADMIN,
            Operation(
                "Everybody with an account here",
                record(users=array(record(account_id=TEXT, email=TEXT, admin=BOOLEAN))),
            ),
        ),
    ]


class _InviteCodes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, request: Request) -> Response:
        services, now = self._services, self._services.clock()
        body = await read_json(request)
        amount, max_uses = _number_of_usd(body), body.get("max_uses")
        max_uses = 1 if max_uses is None else max_uses
        if not isinstance(max_uses, int) or isinstance(max_uses, bool):
            raise refuse("max_uses must be an integer")
        code, expires_at = text_field(body, "code", default=""), _time(body)
        invite = await services.db.write(
            lambda c: invites.create(
                c,
                amount=amount,
                random_hex=services.random_hex,
                now=now,
                code=code,
                max_uses=max_uses,
                expires_at=expires_at,
            )
        )
        return json_reply(_invite(invite), HTTPStatus.CREATED)

    async def listed(self, _request: Request) -> Response:
        found = await self._services.db.read(invites.list_invites)
        return json_reply(
            {
                "invite_codes": [
                    {
                        **_invite(invite),
                        "used_count": invite.used_count,
                        "active": invite.active,
                        "created_at": rfc3339(invite.created_at),
                    }
                    for invite in found
                ]
            }
        )

    async def deactivate(self, request: Request) -> Response:
        code = text_field(await read_json(request), "code")
        if not await self._services.db.write(lambda c: invites.deactivate(c, code)):
            raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "this invite code is not known")
        return json_reply({"status": "deactivated"})


class _Gifts:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def credit(self, request: Request) -> Response:
        return await self._give(request, "admin_credit")

    async def reward(self, request: Request) -> Response:
        return await self._give(request, "admin_reward")

    async def users(self, _request: Request) -> Response:
        users = await self._services.db.read(people.list_users)
        return json_reply(
            {
                "users": [
                    {"account_id": u.account_id, "email": u.email, "admin": u.is_admin}
                    for u in users
                ]
            }
        )

    async def _give(self, request: Request, entry_type: Gift) -> Response:
        now, raw = self._services.clock(), await read_body(request)
        body = json_object(raw)
        email, note = text_field(body, "email"), text_field(body, "note", default="")
        amount = _text_of_usd(body)
        if len(note) > _MAX_NOTE_CHARACTERS:
            raise refuse(f"note has at most {_MAX_NOTE_CHARACTERS} characters")

        def give(connection: Connection) -> dict[str, Any]:
            user = people.find_user(connection, email=email)
            if user is None:
                raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "nobody has this e-mail address")
            balance = reservations.deposit(
                connection,
                user.account_id,
                amount,
                now=now,
                entry_type=entry_type,
                reference=f"{entry_type}:{note}" if note else entry_type,
            )
            return _given(user, entry_type, amount, balance)

        return await once(self._services, request, raw, give)


def _invite(invite: Invite) -> dict[str, Any]:
    shown = {
        "code": invite.code,
        "amount_usd": decimal_usd(invite.amount, _TWO_PLACES),
        "max_uses": invite.max_uses,
    }
    if invite.expires_at is not None:
        shown["expires_at"] = rfc3339(invite.expires_at)
    return shown


def _given(user: User, entry_type: Gift, amount: int, balance: Balance) -> dict[str, Any]:
    shown = {
        "ok": True,
        "account_id": user.account_id,
        "email": user.email,
        "withdrawable": entry_type == "admin_reward",
        "balance_after": _usd(balance.balance),
    }
    if entry_type == "admin_credit":
        return {**shown, "credited_usd": _usd(amount)}
    return {
        **shown,
        "rewarded_usd": _usd(amount),
        "withdrawable_after": _usd(balance.withdrawable),
    }


def _usd(micro_usd: int) -> float:
    """Dollars as a JSON number: these few replies are agreed to give one."""
    return micro_usd / MICRO_PER_USD


def _number_of_usd(body: dict[str, Any]) -> int:
    value = body.get("amount_usd")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise refuse("amount_usd must be a number of dollars")
    # repr is the shortest text that means this number: 0.1 is a tenth, not its binary neighbour.
    return _micro_usd(str(Decimal(repr(value))))


def _text_of_usd(body: dict[str, Any]) -> int:
    return _micro_usd(text_field(body, "amount_usd"))


def _micro_usd(text: str) -> int:
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise refuse(f"amount_usd is {error}") from None
    if amount <= 0:
        raise refuse("amount_usd must be more than 0")
    return amount


def _time(body: dict[str, Any]) -> datetime | None:
    text = text_field(body, "expires_at", default="")
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise refuse("expires_at is not an RFC 3339 time") from None
    if instant.tzinfo is None:
        raise refuse("expires_at needs a time zone, for example a Z at its end")
    return instant
