"""Stripe Connect through Stripe's own SDK, against a server that answers as Stripe documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.payouts import desk as desk_module
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.stripe_connect import StripeRail, onboarding_of
from darkbloom_provider.logs import Secret
from support.books import OWNER
from support.desk import Desk, error_of, front_desk
from support.stripe_api import ARRIVAL, KEY, WEBHOOK_SECRET, Fault, StripeApi, signed, stripe_api

ONBOARD = "/v1/billing/stripe/onboard"
STATUS = "/v1/billing/stripe/status"
WITHDRAW = "/v1/billing/withdraw/stripe"
HISTORY = "/v1/billing/stripe/withdrawals"
WEBHOOK = "/v1/billing/stripe/connect/webhook"
EARNED = 100_000_000


@dataclass
class Bank:
    """The coordinator's desk, and Stripe behind it."""

    desk: Desk
    api: StripeApi
    external_id: str = ""

    async def withdraw(self, amount: str = "10.00", **headers: str) -> httpx.Response:
        return await self.desk.client.post(
            WITHDRAW,
            headers=self.desk.session(OWNER) | headers,
            json={"amount_usd": amount},
        )

    async def row(self) -> dict[str, Any]:
        rows = (await self.desk.get(HISTORY, headers=self.desk.session(OWNER)))["withdrawals"]
        assert len(rows) == 1
        found: dict[str, Any] = rows[0]
        return found

    async def hear(self, event: dict[str, Any]) -> int:
        posted = signed(event, self.desk.clock())
        return (await self.desk.client.post(WEBHOOK, **posted)).status_code

    async def later(self, by: timedelta = timedelta(minutes=2)) -> None:
        """Time passes and the desk goes on with what is due."""
        self.desk.clock.forward(by)
        assert isinstance(self.desk.services.payouts, PayoutDesk)
        await self.desk.services.payouts.take_due_steps()

    async def holds(self, account: str = OWNER) -> int:
        return (await self.desk.services.db.read(lambda c: books.balance_of(c, account))).balance

    def sent(self) -> list[int]:
        """What has left our balance at Stripe for good, in cents."""
        return [t["amount"] for t in self.api.transfers.values() if not t["reversed"]]


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    with stripe_api() as (api, base):
        async with front_desk(
            tmp_path,
            rail=lambda _: StripeRail(Secret(KEY), Secret(WEBHOOK_SECRET), api_base=base),
        ) as desk:
            await desk.user(OWNER)
            await desk.books(lambda shop: shop.earn(EARNED, OWNER))
            bank = Bank(desk, api)
            reply = await desk.client.post(ONBOARD, headers=desk.session(OWNER))
            assert reply.status_code == 200, reply.text
            bank.external_id = reply.json()["stripe_account_id"]
            api.onboard(bank.external_id)
            await desk.get(f"{STATUS}?refresh=1", headers=desk.session(OWNER))
            yield bank
            assert await desk.services.db.read(audit) == []


async def test_from_onboarding_to_paid(bank: Bank) -> None:
    headers = bank.desk.session(OWNER)
    again = (await bank.desk.client.post(ONBOARD, headers=headers)).json()
    assert again["url"].startswith("https://connect.stripe.com/setup/")
    assert (again["stripe_account_id"], again["status"]) == (bank.external_id, "ready")
    assert "sandbox" not in again
    assert len(bank.api.accounts) == 1

    reply = await bank.withdraw()
    assert (reply.status_code, reply.json()["status"]) == (200, "submitted")
    assert reply.json()["arrival_unix"] == ARRIVAL
    (transfer,), (payout,) = bank.api.transfers.values(), bank.api.payouts.values()
    assert (transfer["amount"], transfer["destination"]) == (1000, bank.external_id)
    assert (payout["amount"], payout["account"]) == (1000, bank.external_id)
    assert payout["metadata"] == {"withdrawal_id": reply.json()["withdrawal_id"]}

    assert await bank.hear(bank.api.settle(payout["id"], "paid")) == 200
    assert (await bank.row())["status"] == "paid"
    assert await bank.holds(books.PAID_OUT) == 10_000_000


@pytest.mark.parametrize("path", ["transfers", "payouts"])
@pytest.mark.parametrize("how", ["after", "hang_up", "before", "limit"])
async def test_a_call_without_an_answer_is_repeated_and_done_once(
    bank: Bank, path: str, how: str
) -> None:
    bank.api.faults[path] = [Fault(how)]
    reply = await bank.withdraw()
    assert reply.status_code == 202
    assert reply.json()["status"] == ("pending" if path == "transfers" else "transferred")
    assert await bank.holds() == 90_000_000
    # A 500 is repeated by Stripe for the same key, until it forgets the key.
    await bank.later()
    if how in {"after", "before"}:
        assert (await bank.row())["status"] == reply.json()["status"]
        bank.api.forget_keys()
        await bank.later(timedelta(hours=25))
    row = await bank.row()
    assert (row["status"], "payout_id" in row) == ("transferred", True)
    assert bank.sent() == [1000]
    assert [p["amount"] for p in bank.api.payouts.values()] == [1000]
    assert await bank.holds() == 90_000_000


async def test_a_refused_transfer_is_credited_back_at_once(bank: Bank) -> None:
    bank.api.faults["transfers"] = [Fault("refuse")]
    assert error_of(await bank.withdraw()) == (502, "stripe_error")
    row = await bank.row()
    assert (row["status"], row["refunded"]) == ("failed", True)
    assert row["failure_reason"] == "balance_insufficient: No: balance_insufficient"
    assert await bank.holds() == EARNED
    await bank.later()
    assert bank.sent() == []


async def test_a_refusal_after_a_lost_answer_does_not_pay_twice(bank: Bank) -> None:
    bank.api.faults["transfers"] = [Fault("hang_up"), Fault("refuse", "account_invalid")]
    assert (await bank.withdraw()).status_code == 202
    bank.api.forget_keys()
    await bank.later()
    # The transfer of the first call was found, so nothing was credited back.
    assert (await bank.row())["status"] == "transferred"
    assert bank.sent() == [1000]
    assert await bank.holds() == 90_000_000


async def test_a_refused_payout_is_tried_again_then_taken_back_and_credited(bank: Bank) -> None:
    refusals = desk_module.MAX_PAYOUT_ATTEMPTS
    bank.api.faults["payouts"] = [Fault("refuse") for _ in range(refusals)]
    reply = await bank.withdraw()
    assert (reply.status_code, reply.json()["status"]) == (202, "transferred")
    for _ in range(refusals - 1):
        assert (await bank.row())["status"] == "transferred"
        await bank.later(timedelta(hours=2))
    row = await bank.row()
    assert (row["status"], row["refunded"]) == ("failed", True)
    assert await bank.holds() == EARNED
    assert bank.sent() == []


async def test_a_payout_refused_once_goes_out_under_a_new_key(bank: Bank) -> None:
    bank.api.faults["payouts"] = [Fault("refuse")]
    assert (await bank.withdraw()).status_code == 202
    await bank.later()
    assert "payout_id" in await bank.row()
    assert (bank.sent(), len(bank.api.payouts)) == ([1000], 1)


@pytest.mark.parametrize("first", ["paid", "nothing"])
async def test_a_failed_payout_is_credited_back_and_its_transfer_reversed(
    bank: Bank, first: str
) -> None:
    await bank.withdraw()
    (payout_id,) = bank.api.payouts
    if first == "paid":
        # Banks may refuse days later, after Stripe has reported the payout as paid.
        assert await bank.hear(bank.api.settle(payout_id, "paid")) == 200
    event = bank.api.settle(payout_id, "failed", "account_closed")
    assert await bank.hear(event) == 200
    row = await bank.row()
    assert (row["status"], row["refunded"]) == ("failed", True)
    assert row["failure_reason"] == "account_closed: The bank said no."
    assert await bank.holds() == EARNED
    await bank.later()
    assert len(bank.api.reversals) == 1
    assert bank.sent() == []
    await bank.later(timedelta(days=2))
    assert len(bank.api.reversals) == 1


async def test_events_heard_twice_or_in_any_order_credit_back_once(bank: Bank) -> None:
    await bank.withdraw()
    (payout_id,) = bank.api.payouts
    paid = bank.api.settle(payout_id, "paid")
    failed = bank.api.settle(payout_id, "failed", "no_account")
    (transfer,) = bank.api.transfers.values()
    reversed_ = bank.api.event("transfer.reversed", transfer | {"reversed": True})
    canceled = bank.api.settle(payout_id, "canceled")
    for event in (failed, paid, failed, reversed_, paid, canceled, reversed_):
        assert await bank.hear(event) == 200
    assert (await bank.row())["status"] == "failed"
    assert await bank.holds() == EARNED
    await bank.later()
    # Stripe has taken it back itself.
    assert bank.api.reversals == []


async def test_news_that_overtakes_the_answer_is_placed_by_its_metadata(bank: Bank) -> None:
    bank.api.faults["payouts"] = [Fault("hang_up")]
    assert (await bank.withdraw()).json()["status"] == "transferred"
    (payout_id,) = bank.api.payouts
    assert await bank.hear(bank.api.settle(payout_id, "paid")) == 200
    row = await bank.row()
    assert (row["status"], row["payout_id"]) == ("paid", payout_id)
    await bank.later()
    assert (len(bank.api.payouts), bank.sent()) == (1, [1000])


async def test_when_no_webhook_comes_the_payout_is_asked_about(bank: Bank) -> None:
    await bank.withdraw()
    (payout_id,) = bank.api.payouts
    bank.api.payouts[payout_id]["status"] = "in_transit"
    await bank.later(timedelta(days=3))
    assert (await bank.row())["status"] == "transferred"
    bank.api.payouts[payout_id]["status"] = "paid"
    await bank.later(timedelta(days=1))
    assert (await bank.row())["status"] == "paid"


async def test_a_withdrawal_cut_off_after_its_debit_is_finished_by_the_same_key(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object) -> None:
        raise RuntimeError("the process ends here")

    key = {"Idempotency-Key": "k"}
    with monkeypatch.context() as patch:
        patch.setattr(PayoutDesk, "advance", die)
        assert (await bank.withdraw(**key)).status_code == 500
    assert await bank.holds() == 90_000_000
    reply = await bank.withdraw(**key)
    assert (reply.status_code, reply.json()["status"]) == (200, "submitted")
    assert (bank.sent(), await bank.holds()) == ([1000], 90_000_000)


async def test_only_what_stripe_signed_lately_is_heard(bank: Bank) -> None:
    await bank.withdraw()
    (payout_id,) = bank.api.payouts
    event, now = bank.api.settle(payout_id, "failed", "x"), bank.desk.clock()
    good = signed(event, now)
    tampered = {**good, "content": good["content"].replace(b"evt", b"evu")}
    wrong = [
        signed(event, now, "whsec_other"),
        signed(event, now - timedelta(minutes=6)),
        signed(event, now + timedelta(minutes=6)),
        tampered,
        {"content": good["content"], "headers": {}},
        {"content": good["content"], "headers": {"Stripe-Signature": "t=x,v1="}},
        {"content": b"\xff\xfe", "headers": good["headers"]},
        signed({"type": "payout.failed"}, now),
    ]
    for post in wrong:
        reply = await bank.desk.client.post(WEBHOOK, **post)
        assert reply.status_code == 400
        assert reply.headers["content-type"].startswith("text/plain")
    assert (await bank.row())["status"] == "transferred"
    assert (await bank.desk.client.post(WEBHOOK, **good)).status_code == 200


async def test_somebody_elses_payout_changes_nothing(bank: Bank) -> None:
    await bank.withdraw()
    (payout_id,) = bank.api.payouts
    failed = bank.api.settle(payout_id, "failed", "x")
    assert await bank.hear(failed | {"account": "acct_other"}) == 200
    assert await bank.hear(bank.api.event("payout.failed", {"id": "po_x"}, account="a")) == 200
    assert await bank.hear(bank.api.event("charge.refunded", {"id": "ch_1"})) == 200
    assert (await bank.row())["status"] == "transferred"


async def test_a_transfer_that_stripe_took_back_is_credited_once_all_of_it_is(bank: Bank) -> None:
    await bank.withdraw()
    (transfer,) = bank.api.transfers.values()
    part = transfer | {"reversed": False, "amount_reversed": 1}
    assert await bank.hear(bank.api.event("transfer.reversed", part)) == 200
    assert (await bank.row())["status"] == "transferred"
    whole = transfer | {"reversed": True}
    assert await bank.hear(bank.api.event("transfer.reversed", whole)) == 200
    row = await bank.row()
    assert (row["status"], row["failure_reason"]) == ("failed", "transfer_reversed")
    assert await bank.holds() == EARNED
    await bank.later()
    assert bank.api.reversals == []


async def test_an_updated_account_is_remembered(bank: Bank) -> None:
    bank.api.onboard(bank.external_id, object="card", funding="debit", last4="5556")
    subject = bank.api.accounts[bank.external_id]
    event = bank.api.event("account.updated", subject, account=bank.external_id)
    assert await bank.hear(event) == 200
    status = await bank.desk.get(STATUS, headers=bank.desk.session(OWNER))
    assert (status["destination_type"], status["instant_eligible"]) == ("card", True)


async def test_while_stripe_is_down_setting_up_says_so_and_the_stored_state_stays(
    bank: Bank,
) -> None:
    bank.api.faults["account_links"] = [Fault("before")]
    headers = bank.desk.session(OWNER)
    assert error_of(await bank.desk.client.post(ONBOARD, headers=headers)) == (
        502,
        "stripe_error",
    )
    bank.api.faults[bank.external_id] = [Fault("before")]
    status = await bank.desk.get(f"{STATUS}?refresh=1", headers=headers)
    assert status["status"] == "ready"


@pytest.mark.parametrize(
    ("account", "status"),
    [
        ({}, "pending"),
        (
            {"requirements": {"disabled_reason": "rejected.fraud"}, "payouts_enabled": True},
            "rejected",
        ),
        ({"payouts_enabled": True, "requirements": {"currently_due": ["x"]}}, "ready"),
        ({"details_submitted": True, "requirements": {"currently_due": ["x"]}}, "restricted"),
        ({"details_submitted": True, "requirements": {"currently_due": []}}, "pending"),
        ({"requirements": None, "external_accounts": None}, "pending"),
    ],
)
def test_the_state_of_onboarding_is_read_as_documented(
    account: dict[str, Any], status: str
) -> None:
    assert onboarding_of(account).status == status


async def test_the_secret_key_is_never_in_an_error_or_a_log(
    bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    bank.api.faults["transfers"] = [Fault("refuse")]
    reply = await bank.withdraw()
    rail = StripeRail(Secret("sk_live_wrong"), None, api_base="http://127.0.0.1:9")
    assert "sk_live" not in repr(rail.__dict__)
    await rail.close()
    shown = capsys.readouterr()
    assert KEY not in reply.text + shown.out + shown.err
