"""Endpoints of payouts: set up, withdraw, history, and the rail's webhook."""

from __future__ import annotations

import re
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from darkbloom_provider.coordinator import books, idempotency
from darkbloom_provider.coordinator.accounts import Principal, User
from darkbloom_provider.coordinator.endpoints import Endpoint
from darkbloom_provider.coordinator.guards import ANYONE, USER, Access, admitted
from darkbloom_provider.coordinator.payouts import receivers, withdrawals
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.rail import (
    BadEventError,
    Method,
    RailRefusedError,
    RailUnknownError,
)
from darkbloom_provider.coordinator.payouts.receivers import PayoutAccount
from darkbloom_provider.coordinator.payouts.withdrawals import (
    AmountError,
    InsufficientWithdrawableError,
    Withdrawal,
)
from darkbloom_provider.coordinator.queries import refuse
from darkbloom_provider.coordinator.repeatable import named
from darkbloom_provider.coordinator.replies import (
    ApiError,
    json_reply,
    json_text,
    read_body,
    rfc3339,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import is_loopback
from darkbloom_provider.coordinator.shapes import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    INTEGER,
    NUMBER,
    TEXT,
    TIME,
    USD_TEXT,
    Operation,
    array,
    one_of,
    optional,
    record,
    texts_or_nothing,
)
from darkbloom_provider.protocol.money import MICRO_PER_USD, decimal_usd, parse_usd
from darkbloom_provider.protocol.openai import InvalidRequestError, parse_object

MAX_EVENT_BYTES: Final = 1024 * 1024
DEFAULT_HISTORY: Final = 50
MAX_HISTORY: Final = 200
DEFAULT_COUNTRY: Final = "US"
_COUNTRY: Final = re.compile(r"[A-Z]{2}", re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_ETA: Final = {"standard": "1-2 business days", "instant": "~30 minutes"}
_NOT_CONFIGURED: Final = "payouts are not configured on this coordinator"


USER_OR_MACHINE: Final = Access("user", device_token=True)
"""A person, or a machine of theirs, which may look and not touch."""
_SANDBOX: Final = {"sandbox": optional(BOOLEAN)}
_ONBOARDING: Final = one_of("pending", "ready", "restricted", "rejected")
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
    **_SANDBOX,
)


def endpoints(services: Services) -> list[Endpoint]:
    """The payout endpoints, bound to the coordinator's parts."""
    receiving, leaving = _Receiving(services), _Leaving(services)
    return [
        Endpoint(
            "POST",
            "/v1/billing/stripe/onboard",
            receiving.onboard,
            USER.limited("financial"),
            Operation(
                "A link, good once, to the page where payouts are set up",
                record(url=TEXT, stripe_account_id=TEXT, status=_ONBOARDING, **_SANDBOX),
                texts_or_nothing("return_url", "refresh_url", "country"),
                errors=(502, 503),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/billing/stripe/status",
            receiving.status,
            USER_OR_MACHINE,
            Operation(
                "How far the set-up of payouts is, and what withdrawals cost",
                record(
                    has_account=BOOLEAN,
                    configured=BOOLEAN,
                    stripe_account_id=optional(TEXT),
                    status=optional(_ONBOARDING),
                    destination_type=optional(TEXT),
                    destination_last4=optional(TEXT),
                    instant_eligible=optional(BOOLEAN),
                    min_withdraw_micro_usd=optional(COUNT),
                    instant_fee_bps=optional(COUNT),
                    instant_fee_min_usd=optional(NUMBER),
                    currently_due=optional(array(TEXT)),
                    **_SANDBOX,
                ),
                query={"refresh": TEXT},
            ),
        ),
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
                    **_SANDBOX,
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
        Endpoint(
            "POST",
            "/v1/billing/stripe/connect/webhook",
            _Webhook(services).receive,
            ANYONE,
            Operation(
                "What Stripe tells of payouts, signed by it. Errors are plain text",
                record(received=BOOLEAN),
                ANYTHING,
                headers={"Stripe-Signature": TEXT},
                errors=(503,),
                error_media_type="text/plain",
            ),
        ),
    ]


class _Payouts:
    def __init__(self, services: Services) -> None:
        self._services = services

    def _desk(self) -> PayoutDesk:
        desk = self._services.payouts
        if desk is None:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "billing_error", _NOT_CONFIGURED)
        return desk

    async def _account(self, desk: PayoutDesk, account_id: str) -> PayoutAccount | None:
        return await self._services.db.read(
            lambda c: receivers.payout_account(c, account_id, desk.rail.name)
        )


class _Receiving(_Payouts):
    """Where somebody is paid to."""

    async def onboard(self, request: Request) -> Response:
        user = _user(admitted(request))
        desk, now = self._desk(), self._services.clock()
        asked = _lenient(await read_body(request))
        country = asked.get("country", "").upper() or DEFAULT_COUNTRY
        if _COUNTRY.fullmatch(country) is None:
            raise refuse("country must be two letters, as in ISO 3166-1: US")
        back = self._addresses(request, asked)
        known = await self._account(desk, user.account_id)
        try:
            external_id = (
                known.external_id
                if known
                else await desk.rail.open_account(user.account_id, user.email, country)
            )
            await self._services.db.write(
                lambda c: receivers.open_payout_account(
                    c, user.account_id, desk.rail.name, external_id, now=now
                )
            )
            url = await desk.rail.onboarding_link(
                external_id, return_url=back[0], refresh_url=back[1]
            )
        except (RailRefusedError, RailUnknownError) as error:
            raise _stripe_error(error) from error
        if desk.rail.sandbox:
            url = self._services.sandbox_setup.link(url, external_id, back[0])
        status = known.onboarding.status if known else "pending"
        return json_reply(
            {"url": url, "stripe_account_id": external_id, "status": status, **_mark(desk)}
        )

    def _addresses(self, request: Request, asked: dict[str, str]) -> tuple[str, str]:
        console = self._services.console_url
        default = f"{(console or str(request.base_url)).rstrip('/')}/earn"
        back = asked.get("return_url") or default
        again = asked.get("refresh_url") or back
        for url in (back, again):
            _check_return(url, default, configured=console is not None)
        return back, again

    async def status(self, request: Request) -> Response:
        reader = admitted(request).account_id
        desk, now = self._services.payouts, self._services.clock()
        if desk is None:
            return json_reply({"has_account": False, "configured": False})
        account = await self._account(desk, reader)
        if account is None:
            return json_reply({"has_account": False, "configured": True, **_mark(desk)})
        due: dict[str, Any] = {}
        if request.query_params.get("refresh") == "1":
            try:
                fresh = await desk.rail.onboarding(account.external_id)
            except (RailRefusedError, RailUnknownError):
                fresh = None
            due = {"currently_due": list(fresh.currently_due if fresh else ())}
            if fresh is not None:
                found, latest = account.external_id, fresh
                await self._services.db.write(
                    lambda c: receivers.note_onboarding(c, desk.rail.name, found, latest, now=now)
                )
                account = PayoutAccount(account.account_id, account.external_id, fresh)
        onboarding = account.onboarding
        return json_reply(
            {
                "has_account": True,
                "configured": True,
                "stripe_account_id": account.external_id,
                "status": onboarding.status,
                "destination_type": onboarding.destination_type,
                "destination_last4": onboarding.destination_last4,
                "instant_eligible": onboarding.instant_eligible,
                "min_withdraw_micro_usd": withdrawals.MINIMUM,
                "instant_fee_bps": withdrawals.INSTANT_FEE_BPS,
                "instant_fee_min_usd": withdrawals.INSTANT_FEE_MINIMUM / MICRO_PER_USD,
                **due,
                **_mark(desk),
            }
        )


class _Leaving(_Payouts):
    """Money on its way out."""

    async def withdraw(self, request: Request) -> Response:
        user = _user(admitted(request))
        body = await read_body(request)
        desk, services = self._desk(), self._services
        attempt = named(request, body)
        receiver = await self._account(desk, user.account_id)
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
        rows = await self._services.db.read(lambda c: withdrawals.history(c, reader, limit=limit))
        return json_reply({"withdrawals": [_row(row) for row in rows]})


class _Webhook(_Payouts):
    """Where the rail tells what became of payouts. Errors are plain text, as Stripe shows them."""

    async def receive(self, request: Request) -> Response:
        desk = self._services.payouts
        if desk is None:
            return PlainTextResponse(_NOT_CONFIGURED, HTTPStatus.SERVICE_UNAVAILABLE)
        body = await read_body(request, limit=MAX_EVENT_BYTES)
        signature = request.headers.get("stripe-signature")
        try:
            event = desk.rail.event(body, signature, now=self._services.clock())
        except BadEventError as error:
            return PlainTextResponse(error.what, HTTPStatus.BAD_REQUEST)
        await desk.hear(event)
        return json_reply({"received": True})


def _user(principal: Principal) -> User:
    assert principal.user is not None  # noqa: S101 - the guard "user" has seen to it
    return principal.user


def _mark(desk: PayoutDesk) -> dict[str, bool]:
    """Says that no money moves, where none does."""
    return {"sandbox": True} if desk.rail.sandbox else {}


def _lenient(body: bytes) -> dict[str, str]:
    """The texts of a body whose every field may be left out, and the body too."""
    try:
        document = parse_object(body)
    except InvalidRequestError:
        return {}
    return {name: value.strip() for name, value in document.items() if isinstance(value, str)}


def _check_return(url: str, default: str, *, configured: bool) -> None:
    """Nobody is sent from the rail's page to somebody else's."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise refuse("return_url and refresh_url must be web addresses") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise refuse("return_url and refresh_url must be web addresses")
    own = host == urlsplit(default).hostname
    if is_loopback(host) or own or (not configured and parts.scheme == "https"):
        return
    raise refuse("return_url and refresh_url must lead to this coordinator's console")


def _asked(body: bytes, receiver: PayoutAccount) -> tuple[int, Method]:
    """The amount in micro-USD, and the method. Raises ApiError for the first thing wrong."""
    try:
        document = parse_object(body)
    except InvalidRequestError as error:
        raise refuse(error.what) from None
    word = document.get("method", "standard")
    if not isinstance(word, str) or word.lower() not in _ETA:
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


def _stripe_error(error: RailRefusedError | RailUnknownError) -> ApiError:
    return ApiError(HTTPStatus.BAD_GATEWAY, "stripe_error", error.what)


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
        **_mark(desk),
    }
    if row.transfer_id is not None:
        document["transfer_id"] = row.transfer_id
    if row.payout_id is None:
        # Not a failure: the coordinator goes on by itself, and credits back what cannot be sent.
        document["status"] = row.status
        document["message"] = "the payout is under way; its progress is in the withdrawals"
        return HTTPStatus.ACCEPTED, document
    document["payout_id"] = row.payout_id
    document["eta"] = _ETA[row.method]
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
