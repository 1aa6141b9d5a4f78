"""Stripe Checkout through Stripe's own SDK, against a server that answers as Stripe documents."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from darkbloom_provider.coordinator.deposits.stripe_checkout import StripeCheckout
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.logs import Secret
from support.books import CONSUMER
from support.desk import Desk, error_of, front_desk
from support.stripe_api import KEY, WEBHOOK_SECRET, Fault, StripeApi, signed, stripe_api

CREATE = "/v1/billing/stripe/create-session"
SESSION = "/v1/billing/stripe/session"
WEBHOOK = "/v1/billing/stripe/webhook"
TEN = 10_000_000


@dataclass
class Till:
    """The coordinator's desk, and Stripe behind it."""

    desk: Desk
    api: StripeApi

    async def create(self, amount: str = "10.00", **headers: str) -> httpx.Response:
        return await self.desk.client.post(
            CREATE,
            headers=self.desk.session(CONSUMER) | headers,
            json={"amount_usd": amount, "email": "payer@example.org"},
        )

    async def begun(self) -> tuple[str, str]:
        """A deposit that waits for its payment: our id and Stripe's."""
        made = (await self.create()).json()
        return made["session_id"], made["stripe_session"]

    async def hear(self, event: dict[str, Any], secret: str = WEBHOOK_SECRET) -> int:
        posted = signed(event, self.desk.clock(), secret)
        return (await self.desk.client.post(WEBHOOK, **posted)).status_code

    async def state(self, session_id: str, refresh: str = "") -> Any:
        query = {"id": session_id, "refresh": refresh}
        headers = self.desk.session(CONSUMER)
        return await self.desk.get(SESSION, params=query, headers=headers)

    async def holds(self) -> tuple[int, int]:
        balance = await self.desk.services.db.read(lambda c: books.balance_of(c, CONSUMER))
        return balance.balance, balance.withdrawable


@pytest.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    with stripe_api() as (api, base):
        async with front_desk(
            tmp_path,
            sell=lambda _: StripeCheckout(Secret(KEY), Secret(WEBHOOK_SECRET), api_base=base),
        ) as desk:
            await desk.user(CONSUMER)
            yield Till(desk, api)
            assert await desk.services.db.read(audit) == []


async def test_from_checkout_to_credit(till: Till) -> None:
    reply = await till.create()
    made = reply.json()
    (session,) = till.api.sessions.values()
    assert made == {
        "session_id": made["session_id"],
        "stripe_session": session["id"],
        "url": session["url"],
        "amount_usd": "10.00",
        "amount_micro_usd": TEN,
    }
    asked = session["asked"]
    assert session["metadata"] == {
        "app": "darkbloom",
        "platform": "eigeninference",
        "purchase_type": "inference_credits",
        "source": "coordinator",
        "coordinator_host": "coordinator.test",
        "billing_session_id": made["session_id"],
        "consumer_key": CONSUMER,
    }
    assert asked["line_items[0][price_data][unit_amount]"] == "1000"
    assert asked["customer_email"] == "payer@example.org"
    assert asked["success_url"].endswith(f"/billing/return?id={made['session_id']}")

    assert await till.hear(till.api.pay(session["id"])) == 200
    assert await till.holds() == (TEN, 0)
    assert (await till.state(made["session_id"]))["status"] == "completed"


async def test_every_delivery_after_the_first_changes_nothing(till: Till) -> None:
    session_id, stripe_id = await till.begun()
    paid = till.api.pay(stripe_id)
    # The same event again, and another event about the same payment.
    twin = till.api.event("checkout.session.async_payment_succeeded", till.api.sessions[stripe_id])
    for event in (paid, paid, twin, paid):
        assert await till.hear(event) == 200
    assert await till.holds() == (TEN, 0)
    await till.state(session_id, refresh="1")
    assert await till.holds() == (TEN, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_news_in_any_order_comes_to_the_same(till: Till, order: tuple[int, ...]) -> None:
    session_id, stripe_id = await till.begun()
    events = [
        till.api.pay(stripe_id),
        till.api.event(
            "checkout.session.expired",
            {**till.api.sessions[stripe_id], "payment_status": "unpaid", "status": "expired"},
        ),
        till.api.charge(stripe_id, "charge.refunded", amount_refunded=400),
    ]
    for index in order:
        assert await till.hear(events[index]) == 200
    state = await till.state(session_id)
    assert (state["status"], state["refunded_micro_usd"]) == ("completed", 4_000_000)
    # A refund is told, and the operator decides: the credit may be spent already.
    assert await till.holds() == (TEN, 0)


async def test_a_payment_that_is_not_there_yet_credits_nothing(till: Till) -> None:
    session_id, stripe_id = await till.begun()
    unpaid = {**till.api.sessions[stripe_id], "status": "complete"}
    assert await till.hear(till.api.event("checkout.session.completed", unpaid)) == 200
    assert await till.holds() == (0, 0)
    assert (await till.state(session_id))["status"] == "pending"
    till.api.pay(stripe_id)
    late = till.api.event("checkout.session.async_payment_succeeded", till.api.sessions[stripe_id])
    assert await till.hear(late) == 200
    assert await till.holds() == (TEN, 0)


async def test_what_was_paid_is_credited_and_not_what_was_asked(till: Till) -> None:
    _, stripe_id = await till.begun()
    with capture_logs() as lines:
        assert await till.hear(till.api.pay(stripe_id, 900)) == 200
    assert await till.holds() == (9_000_000, 0)
    assert "deposit_of_another_amount" in {line["event"] for line in lines}


@pytest.mark.parametrize(
    "changed",
    [{"currency": "eur"}, {"amount_total": 0}, {"amount_total": "1000"}, {"amount_total": None}],
)
async def test_a_payment_that_cannot_be_booked_is_refused(
    till: Till, changed: dict[str, Any]
) -> None:
    session_id, stripe_id = await till.begun()
    assert await till.hear(till.api.pay(stripe_id, **changed)) == 400
    assert await till.holds() == (0, 0)
    assert (await till.state(session_id))["status"] == "pending"


async def test_only_stripe_is_believed(till: Till) -> None:
    _, stripe_id = await till.begun()
    paid = till.api.pay(stripe_id)
    assert await till.hear(paid, "whsec_of_somebody_else") == 400
    for age in (timedelta(minutes=-6), timedelta(minutes=6)):
        posted = signed(paid, till.desk.clock() + age)
        assert (await till.desk.client.post(WEBHOOK, **posted)).status_code == 400
    assert (await till.desk.client.post(WEBHOOK, content=b"{}")).status_code == 400
    posted = signed(paid, till.desk.clock())
    posted["content"] = posted["content"].replace(b"1000", b"9999")
    assert (await till.desk.client.post(WEBHOOK, **posted)).status_code == 400
    assert await till.holds() == (0, 0)
    assert await till.hear(paid) == 200
    assert await till.holds() == (TEN, 0)


async def test_a_payment_of_nobody_here_is_left_alone(till: Till) -> None:
    """Another coordinator on the same Stripe account hears of ours, and we of its."""
    _, stripe_id = await till.begun()
    foreign = till.api.pay(stripe_id, id="cs_of_another")
    foreign["data"]["object"]["metadata"]["billing_session_id"] = "of-another"
    with capture_logs() as lines:
        assert await till.hear(foreign) == 200
    assert await till.holds() == (0, 0)
    assert "checkout_event_of_nobody" in {line["event"] for line in lines}


@pytest.mark.parametrize("kind", ["customer.created", "payment_intent.succeeded", ""])
async def test_other_news_is_accepted_and_ignored(till: Till, kind: str) -> None:
    await till.begun()
    for subject in ({}, {"metadata": None}, {"metadata": {"billing_session_id": 7}}):
        assert await till.hear(till.api.event(kind, subject)) == 200
    assert await till.holds() == (0, 0)


async def test_a_dispute_is_noted_told_and_taken_back_when_it_is_won(till: Till) -> None:
    session_id, stripe_id = await till.begun()
    await till.hear(till.api.pay(stripe_id))
    # A dispute carries no metadata of the payment; its id finds the deposit.
    opened = till.api.charge(stripe_id, "charge.dispute.created", amount=1000, metadata={})
    with capture_logs() as lines:
        assert await till.hear(opened) == 200
    assert [line["log_level"] for line in lines if line["event"] == "deposit_disputed"] == ["error"]
    assert (await till.state(session_id))["disputed_micro_usd"] == TEN
    outcome = {"amount": 1000, "status": "won", "metadata": {}}
    won = till.api.charge(stripe_id, "charge.dispute.closed", **outcome)
    assert await till.hear(won) == 200
    assert "disputed_micro_usd" not in await till.state(session_id)
    assert await till.holds() == (TEN, 0)


@pytest.mark.parametrize("how", ["after", "hang_up", "before", "limit"])
async def test_a_checkout_without_an_answer_is_asked_for_again_and_made_once(
    till: Till, how: str
) -> None:
    till.api.faults["sessions"] = [Fault(how)]
    key = {"Idempotency-Key": "mine"}
    assert error_of(await till.create(**key)) == (502, "stripe_error")
    again = await till.create(**key)
    if how in {"after", "before"}:
        # Stripe repeats a 500 for the same key until it forgets the key.
        assert error_of(again) == (502, "stripe_error")
        till.api.forget_keys()
        again = await till.create(**key)
    assert again.status_code == 200, again.text
    paid = till.api.pay(again.json()["stripe_session"])
    assert await till.hear(paid) == 200
    assert await till.holds() == (TEN, 0)


async def test_news_that_overtakes_the_answer_finds_its_deposit(till: Till) -> None:
    till.api.faults["sessions"] = [Fault("hang_up")]
    key = {"Idempotency-Key": "mine"}
    assert (await till.create(**key)).status_code == 502
    (stripe_id,) = till.api.sessions
    assert await till.hear(till.api.pay(stripe_id)) == 200
    assert await till.holds() == (TEN, 0)
    # The answer, when it comes, is about the same session.
    assert (await till.create(**key)).json()["stripe_session"] == stripe_id
    assert await till.holds() == (TEN, 0)


async def test_a_refusal_makes_no_deposit_that_could_be_paid(till: Till) -> None:
    till.api.faults["sessions"] = [Fault("refuse", "amount_too_small")]
    assert error_of(await till.create()) == (502, "stripe_error")
    assert till.api.sessions == {}


async def test_when_the_webhook_is_lost_the_payer_asks(till: Till) -> None:
    session_id, stripe_id = await till.begun()
    till.api.pay(stripe_id)
    assert (await till.state(session_id))["status"] == "pending"
    till.api.faults[stripe_id] = [Fault("before")]
    assert (await till.state(session_id, refresh="1"))["status"] == "pending"
    assert (await till.state(session_id, refresh="1"))["status"] == "completed"
    assert await till.holds() == (TEN, 0)
