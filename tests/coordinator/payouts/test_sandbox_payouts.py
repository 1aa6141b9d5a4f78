"""Withdrawals over HTTP with the sandbox: what is asked is debited once, paid or credited back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.coordinator.earnings.views import ledger_rows
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from support.books import OWNER
from support.desk import ADMIN_KEY, Desk, bearer, error_of, front_desk

ONBOARD = "/v1/billing/stripe/onboard"
STATUS = "/v1/billing/stripe/status"
WITHDRAW = "/v1/billing/withdraw/stripe"
HISTORY = "/v1/billing/stripe/withdrawals"
EARNED = 100_000_000


@pytest.fixture
async def desk(tmp_path: Path, place: Path | str) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, where=place) as desk:
        await desk.user(OWNER)
        await desk.books(lambda shop: shop.earn(EARNED, OWNER))
        yield desk
        assert await desk.services.db.read(audit) == []


async def set_up(desk: Desk, destination: str = "bank", account: str = OWNER) -> None:
    """What a person does: follow the link, choose."""
    headers = desk.session(account)
    link = (await desk.client.post(ONBOARD, headers=headers)).json()["url"]
    assert link.startswith("http://coordinator.test:8080/sandbox/payouts/")
    page = await desk.client.get(link)
    assert f'value="{destination}"' in page.text
    chosen = await desk.client.post(link, data={"destination": destination})
    assert "Payouts are set up" in chosen.text


async def withdraw(desk: Desk, amount: Any = "10.00", **options: Any) -> httpx.Response:
    headers = desk.session(OWNER) | options.pop("headers", {})
    return await desk.client.post(WITHDRAW, headers=headers, json={"amount_usd": amount, **options})


async def holds(desk: Desk, account: str = OWNER) -> tuple[int, int]:
    balance = await desk.services.db.read(lambda c: books.balance_of(c, account))
    return balance.balance, balance.withdrawable


async def settle(desk: Desk) -> None:
    """Until the sandbox's clock has settled everything."""
    assert isinstance(desk.services.payouts, PayoutDesk)
    for _ in range(3):
        desk.clock.forward(timedelta(days=1))
        await desk.services.payouts.take_due_steps()


async def history(desk: Desk) -> list[dict[str, Any]]:
    reply = await desk.get(HISTORY, headers=desk.session(OWNER))
    rows: list[dict[str, Any]] = reply["withdrawals"]
    return rows


async def test_from_earning_to_paid(desk: Desk) -> None:
    before = await desk.get(STATUS, headers=desk.session(OWNER))
    assert before == {"has_account": False, "configured": True, "sandbox": True}
    assert error_of(await withdraw(desk)) == (403, "not_onboarded")
    await set_up(desk)
    status = await desk.get(f"{STATUS}?refresh=1", headers=desk.session(OWNER))
    assert status["stripe_account_id"] == "acct_mock_owner-account_at_example.org"
    assert (status["status"], status["destination_type"], status["destination_last4"]) == (
        "ready",
        "bank",
        "4242",
    )
    assert (status["sandbox"], status["currently_due"]) == (True, [])

    reply = (await withdraw(desk)).json()
    assert reply == {
        "status": "submitted",
        "withdrawal_id": "id-2",
        "transfer_id": "tr_mock_wd-tr-id-2",
        "payout_id": "po_mock_wd-po-id-2",
        "amount_usd": "10.00",
        "fee_usd": "0.00",
        "net_usd": "10.00",
        "method": "standard",
        "eta": "1-2 business days",
        "arrival_unix": int((desk.clock() + timedelta(days=1)).timestamp()),
        "balance_micro_usd": 90_000_000,
        "sandbox": True,
    }
    assert [row["status"] for row in await history(desk)] == ["transferred"]
    await settle(desk)
    (row,) = await history(desk)
    assert (row["status"], row["sandbox"], row["destination_last4"]) == ("paid", True, "4242")
    assert await holds(desk) == (90_000_000, 90_000_000)
    assert await holds(desk, books.WITHDRAWALS) == (0, 0)
    assert (await holds(desk, books.PAID_OUT))[0] == 10_000_000


@pytest.mark.parametrize("destination", ["no_account", "account_closed"])
async def test_a_failed_payout_is_credited_back_withdrawable_with_its_reason(
    desk: Desk, destination: str
) -> None:
    await set_up(desk, destination)
    assert (await withdraw(desk)).status_code == 200
    assert await holds(desk) == (90_000_000, 90_000_000)
    await settle(desk)
    (row,) = await history(desk)
    assert (row["status"], row["refunded"]) == ("failed", True)
    assert row["failure_reason"].startswith(f"{destination}: ")
    assert await holds(desk) == (EARNED, EARNED)
    entries = await desk.services.db.read(lambda c: ledger_rows(c, OWNER))
    assert [(e.type, e.amount_micro_usd, e.reference) for e in entries[:2]] == [
        ("refund", 10_000_000, "stripe_withdraw:id-1"),
        ("stripe_payout", -10_000_000, "stripe_withdraw:id-1"),
    ]


FEES = [
    ("10.00", "standard", 0, 10_000_000, 1000),
    ("10.00", "instant", 500_000, 9_500_000, 950),
    ("1.00", "Instant", 500_000, 500_000, 50),
    ("33.333333", "instant", 500_000, 32_833_333, 3283),
    ("50.00", "instant", 750_000, 49_250_000, 4925),
    ("100.00", "instant", 1_500_000, 98_500_000, 9850),
]


async def test_a_withdrawal_costs_what_the_fee_table_says(desk: Desk) -> None:
    await set_up(desk, "card")
    await desk.books(lambda shop: shop.earn(EARNED * 2, OWNER))
    sent = kept = 0
    for gross, method, fee, net, cents in FEES:
        assert (await withdraw(desk, gross, method=method)).status_code == 200
        row = (await history(desk))[0]
        assert (row["fee_micro_usd"], row["net_micro_usd"]) == (fee, net)
        await settle(desk)
        sent += cents * 10_000
        # The fee, and what is less than a cent, is the platform's. Nothing is lost.
        kept += fee + net - cents * 10_000
        assert (await holds(desk, books.PAID_OUT))[0] == sent
        assert (await holds(desk, books.PLATFORM))[0] == kept


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"amount_usd": "0.99"}, 400, "invalid_request_error"),
    ({"amount_usd": "0.999999"}, 400, "invalid_request_error"),
    ({"amount_usd": "-5"}, 400, "invalid_request_error"),
    ({"amount_usd": "0"}, 400, "invalid_request_error"),
    ({"amount_usd": "NaN"}, 400, "invalid_request_error"),
    ({"amount_usd": "1e400"}, 400, "invalid_request_error"),
    ({"amount_usd": "2.0000001"}, 400, "invalid_request_error"),
    ({"amount_usd": 10}, 400, "invalid_request_error"),
    ({}, 400, "invalid_request_error"),
    ({"amount_usd": "10", "method": "wire"}, 400, "invalid_request_error"),
    ({"amount_usd": "10", "method": "instant"}, 400, "instant_unavailable"),
    ({"amount_usd": "100.000001"}, 400, "insufficient_withdrawable"),
]


async def test_what_cannot_be_withdrawn_is_refused_and_nothing_moves(desk: Desk) -> None:
    await set_up(desk)
    for body, status, kind in REFUSED:
        reply = await desk.client.post(WITHDRAW, headers=desk.session(OWNER), json=body)
        assert error_of(reply) == (status, kind), body
    assert await holds(desk) == (EARNED, EARNED)
    assert await history(desk) == []


async def test_credit_that_was_not_earned_cannot_be_withdrawn(desk: Desk) -> None:
    await set_up(desk)
    await desk.books(lambda shop: shop.deposit(50_000_000, OWNER))
    assert error_of(await withdraw(desk, "100.01")) == (400, "insufficient_withdrawable")
    assert (await withdraw(desk, "100.00")).status_code == 200
    assert await holds(desk) == (50_000_000, 0)


async def test_the_same_key_withdraws_once_and_answers_alike(desk: Desk) -> None:
    await set_up(desk)
    key = {"Idempotency-Key": "my-key-1"}
    first = await withdraw(desk, headers=key)
    again = await withdraw(desk, headers=key)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert len(await history(desk)) == 1
    other = await withdraw(desk, "11.00", headers=key)
    assert error_of(other) == (409, "conflict")
    assert await holds(desk) == (90_000_000, 90_000_000)
    # A day later the key is forgotten.
    desk.clock.forward(timedelta(hours=24))
    assert (await withdraw(desk, headers=key)).json()["withdrawal_id"] != "id-1"


async def test_a_key_is_its_callers_own(desk: Desk) -> None:
    await set_up(desk)
    await desk.user("other")
    await desk.books(lambda shop: shop.earn(EARNED, "other"))
    await set_up(desk, account="other")
    key = {"Idempotency-Key": "same"}
    mine = await withdraw(desk, headers=key)
    theirs = await desk.client.post(
        WITHDRAW, headers=desk.session("other") | key, json={"amount_usd": "10.00"}
    )
    assert mine.json()["withdrawal_id"] != theirs.json()["withdrawal_id"]


async def test_a_refused_request_may_be_sent_again_with_its_key(desk: Desk) -> None:
    key = {"Idempotency-Key": "early"}
    assert error_of(await withdraw(desk, headers=key)) == (403, "not_onboarded")
    await set_up(desk)
    assert (await withdraw(desk, headers=key)).status_code == 200


async def test_a_key_that_is_none_is_refused(desk: Desk) -> None:
    await set_up(desk)
    for key in ("", "x" * 256, "two words", "ä"):
        reply = await withdraw(desk, headers={"Idempotency-Key": key.encode()})
        assert error_of(reply) == (400, "invalid_request_error"), key


async def test_many_at_once_with_one_key_make_one_withdrawal(desk: Desk) -> None:
    await set_up(desk)
    replies = await asyncio.gather(
        *(withdraw(desk, headers={"Idempotency-Key": "k"}) for _ in range(8))
    )
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["withdrawal_id"] for reply in replies}) == 1
    assert await holds(desk) == (90_000_000, 90_000_000)


async def test_many_at_once_never_take_more_than_there_is(desk: Desk) -> None:
    await set_up(desk)
    replies = await asyncio.gather(*(withdraw(desk, "60.00") for _ in range(6)))
    assert sorted(reply.status_code for reply in replies) == [200, 400, 400, 400, 400, 400]
    assert await holds(desk) == (40_000_000, 40_000_000)


async def test_only_the_account_itself_moves_its_money(desk: Desk) -> None:
    await set_up(desk)
    machine = await desk.device_token(OWNER)
    for path in (WITHDRAW, ONBOARD):
        for headers in ({}, machine, bearer("eyJx"), bearer(ADMIN_KEY)):
            reply = await desk.client.post(path, headers=headers, json={"amount_usd": "10"})
            assert reply.status_code == 401, (path, headers)
    for path in (STATUS, HISTORY):
        assert (await desk.client.get(path)).status_code == 401
        assert (await desk.client.get(path, headers=bearer(ADMIN_KEY))).status_code == 401
        assert (await desk.client.get(path, headers=machine)).status_code == 200
    reply = await desk.client.post(
        WITHDRAW, headers=await desk.api_key(OWNER), json={"amount_usd": "10"}
    )
    assert reply.status_code == 200
    await desk.user("other")
    assert (await desk.get(HISTORY, headers=desk.session("other")))["withdrawals"] == []


async def test_setting_up_twice_reuses_the_account_and_a_link_is_good_once(desk: Desk) -> None:
    headers = desk.session(OWNER)
    one = (await desk.client.post(ONBOARD, headers=headers)).json()
    two = (await desk.client.post(ONBOARD, headers=headers, json={"country": "de"})).json()
    assert one["stripe_account_id"] == two["stripe_account_id"]
    assert one["url"] != two["url"]
    assert (await desk.client.post(one["url"], data={"destination": "nowhere"})).status_code == 400
    assert (await desk.client.post(one["url"], data={"destination": "card"})).status_code == 200
    for method in ("GET", "POST"):
        used = await desk.client.request(method, one["url"], data={"destination": "bank"})
        assert used.status_code == 404


async def test_the_page_says_that_nothing_is_real_and_runs_no_foreign_code(desk: Desk) -> None:
    link = (await desk.client.post(ONBOARD, headers=desk.session(OWNER))).json()["url"]
    page = await desk.client.get(link)
    assert "no real money moves" in page.text
    assert not re.search(r"<script|https?://(?!coordinator)", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_nobody_is_sent_back_to_somewhere_else(desk: Desk) -> None:
    for url, fine in {
        "http://localhost:3000/x": True,
        "http://127.0.0.1/x": True,
        "http://[::1]:1/": True,
        "https://elsewhere.example/": True,
        "http://elsewhere.example/": False,
        "javascript:alert(1)": False,
        "//elsewhere.example": False,
        "http://[": False,
    }.items():
        headers = desk.session(OWNER)
        reply = await desk.client.post(ONBOARD, headers=headers, json={"return_url": url})
        assert reply.status_code == (200 if fine else 400), url


async def test_with_a_console_only_its_own_host_is_returned_to(tmp_path: Path) -> None:
    async with front_desk(tmp_path, console_url="https://console.example") as desk:
        await desk.user(OWNER)
        for url, status in (("https://console.example/x", 200), ("https://evil.example/", 400)):
            reply = await desk.client.post(
                ONBOARD, headers=desk.session(OWNER), json={"return_url": url}
            )
            assert reply.status_code == status


async def test_without_payouts_everything_says_so(tmp_path: Path) -> None:
    async with front_desk(tmp_path, payouts=None) as desk:
        await desk.user(OWNER)
        headers = desk.session(OWNER)
        assert await desk.get(STATUS, headers=headers) == {
            "has_account": False,
            "configured": False,
        }
        for path in (ONBOARD, WITHDRAW):
            assert error_of(await desk.client.post(path, headers=headers, json={})) == (
                503,
                "billing_error",
            )
        assert (await desk.client.post("/v1/billing/stripe/connect/webhook")).status_code == 503


async def test_the_sandbox_takes_no_webhooks(desk: Desk) -> None:
    reply = await desk.client.post("/v1/billing/stripe/connect/webhook", content=b"{}")
    assert reply.status_code == 400
