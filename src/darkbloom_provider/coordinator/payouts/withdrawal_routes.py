"""Endpoints where owners withdraw, and follow what became of it."""

from __future__ import annotations

import re
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.ledger import books, idempotency
from darkbloom_provider.coordinator.payouts import withdrawals
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.endpoints import (
    SANDBOX,
    USER_OR_MACHINE,
    PayoutEndpoints,
    mark,
    user_of,
)
from darkbloom_provider.coordinator.payouts.rail import ETA, Method
from darkbloom_provider.coordinator.payouts.receivers import PayoutAccount
from darkbloom_provider.coordinator.payouts.withdrawals import (
    AmountError,
    InsufficientWithdrawableError,
    Withdrawal,
)
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import USER, admitted
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.repeatable import named
from darkbloom_provider.coordinator.rest.replies import (
    ApiError,
    json_reply,
    json_text,
    read_body,
    rfc3339,
)
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    COUNT,
    INTEGER,
    TEXT,
    TIME,
    USD_TEXT,
    Operation,
    array,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.money import decimal_usd, parse_usd
from darkbloom_provider.protocol.openai import InvalidRequestError, parse_object

DEFAULT_HISTORY: Final = 50
MAX_HISTORY: Final = 200
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_METHOD: Final = one_of("standard", "instant")
_IDS: Final = {"transfer_id": optional(TEXT), "payout_id": optional(TEXT)}
_DESTINATION: Final = {"destination_type": one_of("", "bank", "card"), "destination_last4": TEXT}
_WITHDRAWAL: Final = record(
    id=TEXT,
    account_id=TEXT,
    stripe_account_id=TEXT,
    **_IDS,
    amount_micro_usd=COUNT,
    fee_micro_usd=COUNT,
    net_micro_usd=COUNT,
    method=_METHOD,
    status=one_of("pending", "transferred", "paid", "failed"),
    failure_reason=optional(TEXT),
    refunded=optional(BOOLEAN),
    **_DESTINATION,
    created_at=TIME,
    updated_at=TIME,
    **SANDBOX,
)


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    leaving = _Leaving(services)
    return [
        Endpoint(
            "POST",
            "/v1/billing/withdraw/stripe",
            leaving.withdraw,
            USER.limited("financial"),
            Operation(
                "Withdraw earned money; 202 if the rail has not answered yet",
                record(
                    status=one_of("submitted", "pending", "transferred", "paid"),
                    withdrawal_id=TEXT,
                    **_IDS,
                    amount_usd=USD_TEXT,
                    fee_usd=USD_TEXT,
                    net_usd=USD_TEXT,
                    method=_METHOD,
                    eta=optional(TEXT),
                    arrival_unix=optional(INTEGER),
                    balance_micro_usd=COUNT,
                    message=optional(TEXT),
                    **SANDBOX,
                ),
                record(amount_usd=USD_TEXT, method=optional(TEXT)),
                headers={idempotency.HEADER: TEXT},
                errors=(403, 409, 502, 503),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/billing/stripe/withdrawals",
            leaving.history,
            USER_OR_MACHINE,
            Operation(
                "The account's withdrawals, newest first",
                record(withdrawals=array(_WITHDRAWAL)),
                query={"limit": TEXT},
            ),
        ),
    ]


class _Leaving(PayoutEndpoints):
    """Money on its way out."""

    async def withdraw(self, request: Request) -> Response:
        user = user_of(admitted(request))
        body = await read_body(request)
        desk, services = self.desk(), self.services
        attempt = named(request, body)
        receiver = await self.account(desk, user.account_id)
        withdrawal_id, now = services.new_id(), services.clock()

        def begin(connection: Connection) -> idempotency.Earlier | Withdrawal:
            before = idempotency.earlier(connection, attempt, now=now)
            if before is not None:
                return before
            if receiver is None or receiver.onboarding.status != "ready":
                raise ApiError(HTTPStatus.FORBIDDEN, "not_onboarded", "set up payouts first")
            amount, method = _asked(body, receiver)
            idempotency.begin(connection, attempt, resource=withdrawal_id, now=now)
            return withdrawals.request(
                connection,
                receiver,
                withdrawal_id=withdrawal_id,
                rail=desk.rail.name,
                amount=amount,
                method=method,
                now=now,
            )

        try:
            begun = await services.db.write(begin)
        except InsufficientWithdrawableError as short:
            raise ApiError(
                HTTPStatus.BAD_REQUEST, "insufficient_withdrawable", short.what
            ) from None
        except AmountError as wrong:
            raise refuse(wrong.what) from None
        if isinstance(begun, idempotency.Earlier):
            if begun.status is not None:
                return Response(begun.reply, begun.status, media_type="application/json")
            # It was cut off after the debit: go on with that one.
            made = begun.resource
            begun = await services.db.read(lambda c: withdrawals.get(c, made))
        done = await desk.advance(begun)
        balance = await services.db.read(lambda c: books.balance_of(c, user.account_id))
        status, document = _outcome(done, desk, balance.balance)
        text = f"{json_text(document)}\n"
        await services.db.write(lambda c: idempotency.finish(c, attempt, status=status, reply=text))
        return Response(text, status, media_type="application/json")

    async def history(self, request: Request) -> Response:
        reader = admitted(request).account_id
        limit = _limit(request.query_params.get("limit", ""))
        rows = await self.services.db.read(lambda c: withdrawals.history(c, reader, limit=limit))
        return json_reply({"withdrawals": [_row(row) for row in rows]})


def _asked(body: bytes, receiver: PayoutAccount) -> tuple[int, Method]:
    """The amount in micro-USD, and the method. Raises ApiError for the first thing wrong."""
    try:
        document = parse_object(body)
    except InvalidRequestError as error:
        raise refuse(error.what) from None
    word = document.get("method", "standard")
    if not isinstance(word, str) or word.lower() not in ETA:
        raise refuse("method must be standard or instant")
    method: Method = "instant" if word.lower() == "instant" else "standard"
    if method == "instant" and not receiver.onboarding.instant_eligible:
        message = "instant payouts need a debit card"
        raise ApiError(HTTPStatus.BAD_REQUEST, "instant_unavailable", message)
    text = document.get("amount_usd")
    if not isinstance(text, str):
        raise refuse('amount_usd is required, as text: "10.00"')
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise refuse(f"amount_usd is {error}") from None
    if amount <= 0:
        raise refuse("amount_usd must be positive")
    return amount, method


def _outcome(row: Withdrawal, desk: PayoutDesk, balance: int) -> tuple[int, dict[str, Any]]:
    """What the one who asked is told."""
    if row.status == "failed":
        message = f"the payout was refused and credited back ({row.failure_reason})"
        error = {"type": "stripe_error", "message": message}
        return HTTPStatus.BAD_GATEWAY, {"error": error}
    document: dict[str, Any] = {
        "status": "submitted",
        "withdrawal_id": row.id,
        "amount_usd": decimal_usd(row.amount, 2),
        "fee_usd": decimal_usd(row.fee, 2),
        "net_usd": decimal_usd(row.net, 2),
        "method": row.method,
        "balance_micro_usd": balance,
        **mark(desk),
    }
    if row.transfer_id is not None:
        document["transfer_id"] = row.transfer_id
    if row.payout_id is None:
        # Not a failure: the coordinator goes on by itself, and credits back what cannot be sent.
        document["status"] = row.status
        document["message"] = "the payout is under way; its progress is in the withdrawals"
        return HTTPStatus.ACCEPTED, document
    document["payout_id"] = row.payout_id
    document["eta"] = ETA[row.method]
    if row.arrival_at is not None:
        document["arrival_unix"] = int(row.arrival_at.timestamp())
    return HTTPStatus.OK, document


def _row(row: Withdrawal) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": row.id,
        "account_id": row.account_id,
        "stripe_account_id": row.external_id,
        "amount_micro_usd": row.amount,
        "fee_micro_usd": row.fee,
        "net_micro_usd": row.net,
        "method": row.method,
        "status": row.status,
        "created_at": rfc3339(row.created_at),
        "updated_at": rfc3339(row.updated_at),
        "destination_type": row.destination_type,
        "destination_last4": row.destination_last4,
    }
    optional: dict[str, str | bool | datetime | None] = {
        "transfer_id": row.transfer_id,
        "payout_id": row.payout_id,
        "failure_reason": row.failure_reason,
        "refunded": row.refunded,
        "sandbox": row.rail == "sandbox",
    }
    return document | {name: value for name, value in optional.items() if value}


def _limit(text: str) -> int:
    if _COUNT.fullmatch(text) is None or not 1 <= int(text) <= MAX_HISTORY:
        return DEFAULT_HISTORY
    return int(text)
