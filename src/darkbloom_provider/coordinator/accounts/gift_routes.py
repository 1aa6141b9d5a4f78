"""Endpoints of invites and referrals, for the accounts that use them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.accounts import invites, referrals
from darkbloom_provider.coordinator.ledger import books, idempotency
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANY, USER, admitted
from darkbloom_provider.coordinator.rest.repeatable import once
from darkbloom_provider.coordinator.rest.replies import (
    json_object,
    json_reply,
    read_body,
    read_json,
    text_field,
)
from darkbloom_provider.coordinator.rest.shapes import (
    CODE,
    COUNT,
    TEXT,
    USD_TEXT,
    Operation,
    amount,
    one_of,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.money import decimal_usd

_CODE: Final = record(code=CODE)
_TWO_PLACES: Final = 2


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    gifts = _Gifts(services)
    return [
        Endpoint(
            "POST",
            "/v1/invite/redeem",
            gifts.redeem,
            USER.limited("financial"),
            Operation(
                "Turn an invite code into credit that can be spent and not withdrawn",
                record(credited_usd=USD_TEXT, balance_usd=USD_TEXT),
                _CODE,
                headers={idempotency.HEADER: TEXT},
                errors=(404, 409),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/referral/register",
            gifts.register,
            USER.limited("financial"),
            Operation(
                "Become a referrer under a code of one's choice, for good",
                record(code=TEXT, share_percent=COUNT, message=TEXT),
                _CODE,
            ),
        ),
        Endpoint(
            "POST",
            "/v1/referral/apply",
            gifts.apply,
            USER.limited("financial"),
            Operation(
                "Say who brought this account here; once",
                record(status=one_of("applied"), code=TEXT, message=TEXT),
                _CODE,
            ),
        ),
        Endpoint(
            "GET",
            "/v1/referral/stats",
            gifts.stats,
            ANY,
            Operation(
                "What a referrer has come to",
                record(
                    code=TEXT,
                    share_percent=COUNT,
                    total_referred=COUNT,
                    **amount("total_rewards"),
                    **amount("balance"),
                ),
                errors=(404,),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/referral/info",
            gifts.info,
            ANY,
            Operation(
                "A referrer's code, and who referred them",
                record(code=TEXT, share_percent=COUNT, referred_by=TEXT),
                errors=(404,),
            ),
        ),
    ]


class _Gifts:
    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def _share(self) -> int:
        return self._services.policy.referral_percent

    async def redeem(self, request: Request) -> Response:
        account_id, now = admitted(request).account_id, self._services.clock()
        sent = await read_body(request)
        code = text_field(json_object(sent), "code")

        def redeem(connection: Connection) -> dict[str, str]:
            invite, balance = invites.redeem(connection, code, account_id=account_id, now=now)
            return {
                "credited_usd": decimal_usd(invite.amount, _TWO_PLACES),
                "balance_usd": decimal_usd(balance.balance),
            }

        return await once(self._services, request, sent, redeem)

    async def register(self, request: Request) -> Response:
        now, account_id = self._services.clock(), admitted(request).account_id
        wanted = text_field(await read_json(request), "code")
        code = await self._services.db.write(
            lambda c: referrals.register(c, wanted, account_id=account_id, now=now)
        )
        message = f"Whoever applies the code {code} brings you {self._share} % of the fees they pay"
        return json_reply({"code": code, "share_percent": self._share, "message": message})

    async def apply(self, request: Request) -> Response:
        now, account_id = self._services.clock(), admitted(request).account_id
        given = text_field(await read_json(request), "code")
        code = await self._services.db.write(
            lambda c: referrals.apply(c, given, account_id=account_id, now=now)
        )
        return json_reply(
            {"status": "applied", "code": code, "message": "The referral is noted, for good"}
        )

    async def stats(self, request: Request) -> Response:
        account_id = admitted(request).account_id
        standing, balance = await self._services.db.read(
            lambda c: (referrals.standing(c, account_id), books.balance_of(c, account_id))
        )
        return json_reply(
            {
                "code": standing.code,
                "share_percent": self._share,
                "total_referred": standing.referred,
                "total_rewards_micro_usd": standing.rewards_micro_usd,
                "total_rewards_usd": decimal_usd(standing.rewards_micro_usd),
                "balance_micro_usd": balance.balance,
                "balance_usd": decimal_usd(balance.balance),
            }
        )

    async def info(self, request: Request) -> Response:
        account_id = admitted(request).account_id

        def view(connection: Connection) -> tuple[str, str]:
            standing = referrals.standing(connection, account_id)
            by = referrals.referrer_of(connection, account_id)
            return standing.code, (by and referrals.code_of(connection, by)) or ""

        code, referred_by = await self._services.db.read(view)
        return json_reply({"code": code, "share_percent": self._share, "referred_by": referred_by})
