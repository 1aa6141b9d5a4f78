"""Endpoints where credit is bought: methods, a checkout, what became of it, and the rail's word."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from darkbloom_provider.coordinator.deposits import ledger
from darkbloom_provider.coordinator.deposits.desk import DepositDesk
from darkbloom_provider.coordinator.deposits.ledger import Deposit
from darkbloom_provider.coordinator.deposits.rail import CheckoutOrder
from darkbloom_provider.coordinator.ledger import idempotency
from darkbloom_provider.coordinator.rails import webhooks
from darkbloom_provider.coordinator.rails.rail import (
    RailRefusedError,
    RailUnknownError,
)
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANY, ANYONE, admitted
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.repeatable import named
from darkbloom_provider.coordinator.rest.replies import (
    ApiError,
    json_object,
    json_reply,
    json_text,
    read_body,
    rfc3339,
    text_field,
)
from darkbloom_provider.coordinator.rest.shapes import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    NON_EMPTY,
    TEXT,
    TIME,
    USD_TEXT,
    Operation,
    array,
    maybe,
    nullable,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.money import decimal_usd, parse_usd

RETURN_PATH: Final = "/billing/return"
"""The console's page that payers come back to."""
_NOT_CONFIGURED: Final = "credit cannot be bought on this coordinator"
_SANDBOX: Final = {"sandbox": optional(BOOLEAN)}
_TWO_PLACES: Final = 2
_MAX_EMAIL: Final = 254


def endpoints(services: Services) -> list[Endpoint]:
    """The deposit endpoints, bound to the coordinator's parts."""
    deposits = _Deposits(services)
    return [
        Endpoint(
            "GET",
            "/v1/billing/methods",
            deposits.methods,
            ANYONE,
            Operation(
                "How credit can be bought",
                record(
                    methods=array(
                        record(method=TEXT, display_name=TEXT, currencies=array(TEXT), **_SANDBOX)
                    ),
                    referral=record(enabled=BOOLEAN, share_percent=COUNT),
                    **_SANDBOX,
                ),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/billing/stripe/create-session",
            deposits.create,
            ANY.limited("financial"),
            Operation(
                "A page, good once, where credit is paid for",
                record(
                    session_id=TEXT,
                    stripe_session=TEXT,
                    url=TEXT,
                    amount_usd=USD_TEXT,
                    amount_micro_usd=COUNT,
                    **_SANDBOX,
                ),
                record(amount_usd=NON_EMPTY, email=maybe(TEXT), referral_code=maybe(TEXT)),
                headers={idempotency.HEADER: TEXT},
                errors=(409, 502),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/billing/stripe/session",
            deposits.session,
            ANY,
            Operation(
                "What became of it; with `refresh=1` the payment service is asked",
                record(
                    session_id=TEXT,
                    payment_method=TEXT,
                    amount_micro_usd=COUNT,
                    status=one_of("pending", "completed", "expired"),
                    created_at=TIME,
                    completed_at=nullable(TIME),
                    credited_micro_usd=optional(COUNT),
                    refunded_micro_usd=optional(COUNT),
                    disputed_micro_usd=optional(COUNT),
                    **_SANDBOX,
                ),
                query={"id": NON_EMPTY, "refresh": TEXT},
                required_query=("id",),
                errors=(404,),
            ),
        ),
        Endpoint(
            "POST",
            "/v1/billing/stripe/webhook",
            deposits.receive,
            ANYONE,
            Operation(
                "What Stripe tells of payments, signed by it. Errors are plain text",
                record(received=BOOLEAN),
                ANYTHING,
                headers={"Stripe-Signature": TEXT},
                error_media_type="text/plain",
            ),
        ),
    ]


class _Deposits:
    def __init__(self, services: Services) -> None:
        self._services = services

    def _desk(self) -> DepositDesk:
        desk = self._services.deposits
        if desk is None:
            raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "billing_error", _NOT_CONFIGURED)
        return desk

    async def methods(self, _request: Request) -> Response:
        desk = self._services.deposits
        name = "Sandbox (no real money)" if _mark(desk) else "Credit/Debit Card (Stripe)"
        card = {"method": "stripe", "display_name": name, "currencies": ["USD"], **_mark(desk)}
        policy = self._services.policy
        referral = {"enabled": policy.fee_percent > 0, "share_percent": policy.referral_percent}
        methods = [] if desk is None else [card]
        return json_reply({"methods": methods, "referral": referral, **_mark(desk)})

    async def create(self, request: Request) -> Response:
        account_id = admitted(request).account_id
        raw = await read_body(request)
        desk, services = self._desk(), self._services
        attempt, now, deposit_id = named(request, raw), services.clock(), services.new_id()

        def begin(connection: Connection) -> idempotency.Earlier | Deposit:
            before = idempotency.earlier(connection, attempt, now=now)
            if before is not None:
                return before
            body = json_object(raw)
            deposit = ledger.request(
                connection,
                account_id,
                deposit_id=deposit_id,
                rail=desk.rail.name,
                amount=_amount(body),
                referral_code=text_field(body, "referral_code", default=""),
                now=now,
            )
            idempotency.begin(connection, attempt, resource=deposit_id, now=now)
            return deposit

        begun = await services.db.write(begin)
        if isinstance(begun, idempotency.Earlier):
            if begun.reply is not None:
                return Response(begun.reply, media_type="application/json")
            # It was cut off before the rail had answered: go on with that one.
            made = begun.resource
            begun = await services.db.read(lambda c: ledger.get(c, made))
        order = self._order(request, begun, _email(json_object(raw)))
        try:
            opened, url = await desk.open(begun, order)
        except (RailRefusedError, RailUnknownError) as error:
            raise ApiError(HTTPStatus.BAD_GATEWAY, "stripe_error", error.what) from error
        document = {
            "session_id": opened.id,
            "stripe_session": opened.external_id,
            "url": url,
            "amount_usd": decimal_usd(opened.amount, _TWO_PLACES),
            "amount_micro_usd": opened.amount,
            **_mark(desk),
        }
        text = f"{json_text(document)}\n"
        await services.db.write(lambda c: idempotency.finish(c, attempt, status=200, reply=text))
        return Response(text, media_type="application/json")

    def _order(self, request: Request, deposit: Deposit, email: str) -> CheckoutOrder:
        base = (self._services.console_url or str(request.base_url)).rstrip("/")
        return CheckoutOrder(
            deposit_id=deposit.id,
            account_id=deposit.account_id,
            cents=deposit.cents,
            return_url=f"{base}{RETURN_PATH}?id={deposit.id}",
            email=email,
            referral_code=deposit.referral_code,
            host=request.url.hostname or "",
        )

    async def session(self, request: Request) -> Response:
        account_id, wanted = admitted(request).account_id, request.query_params.get("id", "")
        if not wanted:
            raise refuse("id is required")
        desk = self._desk()
        deposit = await self._services.db.read(
            lambda c: ledger.find(c, desk.rail.name, deposit_id=wanted)
        )
        if deposit is None or deposit.account_id != account_id:
            raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "there is no such session")
        if request.query_params.get("refresh") == "1":
            deposit = await desk.refresh(deposit)
        return json_reply({**_shown(deposit), **_mark(desk)})

    async def receive(self, request: Request) -> Response:
        """Errors are plain text, as Stripe shows them."""
        desk = self._services.deposits
        if desk is None:
            return PlainTextResponse(_NOT_CONFIGURED, HTTPStatus.SERVICE_UNAVAILABLE)
        return await webhooks.received(request, desk, now=self._services.clock())


def _mark(desk: DepositDesk | None) -> dict[str, bool]:
    """Says that no money moves, where none does."""
    return {"sandbox": True} if desk is not None and desk.rail.sandbox else {}


def _amount(body: dict[str, Any]) -> int:
    try:
        return parse_usd(text_field(body, "amount_usd"))
    except ValueError as error:
        raise refuse(f"amount_usd is {error}") from None


def _email(body: dict[str, Any]) -> str:
    """For the receipt. What cannot be one is left out; the payer can type it on the page."""
    email = text_field(body, "email", default="")
    return email if "@" in email and len(email) <= _MAX_EMAIL else ""


def _shown(deposit: Deposit) -> dict[str, Any]:
    document: dict[str, Any] = {
        "session_id": deposit.id,
        "payment_method": "stripe",
        "amount_micro_usd": deposit.amount,
        "status": deposit.status,
        "created_at": rfc3339(deposit.created_at),
        "completed_at": deposit.completed_at and rfc3339(deposit.completed_at),
    }
    later = {
        "credited_micro_usd": deposit.credited,
        "refunded_micro_usd": deposit.refunded,
        "disputed_micro_usd": deposit.disputed,
    }
    return document | {name: amount for name, amount in later.items() if amount}
