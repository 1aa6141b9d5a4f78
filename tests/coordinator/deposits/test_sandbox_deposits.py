"""Credit bought in the sandbox: asked for, pretended to be paid, credited once, said to be play."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.coordinator.accounts import referrals
from darkbloom_provider.coordinator.deposits import ledger as deposits
from darkbloom_provider.coordinator.earnings.views import ledger_rows
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.server import running_coordinator
from darkbloom_provider.coordinator.settings import Payouts, Settings
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue
from support.books import CONSUMER, OWNER
from support.desk import BASE, Desk, error_of, front_desk

CREATE = "/v1/billing/stripe/create-session"
SESSION = "/v1/billing/stripe/session"


@pytest.fixture
async def desk(tmp_path: Path, place: Path | str) -> AsyncIterator[Desk]:
    async with front_desk(tmp_path, where=place) as desk:
        for name in (OWNER, CONSUMER):
            await desk.user(name)
        yield desk
        assert await desk.services.db.read(audit) == []


async def create(desk: Desk, amount: Any = "10.00", **options: Any) -> httpx.Response:
    headers = desk.session(CONSUMER) | options.pop("headers", {})
    return await desk.client.post(CREATE, headers=headers, json={"amount_usd": amount, **options})


async def holds(desk: Desk) -> tuple[int, int]:
    balance = await desk.services.db.read(lambda c: books.balance_of(c, CONSUMER))
    return balance.balance, balance.withdrawable


async def state(desk: Desk, session_id: str) -> Any:
    return await desk.get(f"{SESSION}?id={session_id}", headers=desk.session(CONSUMER))


async def test_credit_is_bought_on_the_page_and_cannot_be_withdrawn(desk: Desk) -> None:
    made = (await create(desk)).json()
    assert made == {
        "session_id": made["session_id"],
        "stripe_session": f"cs_mock_{made['session_id']}",
        "url": f"{BASE}/sandbox/deposits/{made['session_id']}",
        "amount_usd": "10.00",
        "amount_micro_usd": 10_000_000,
        "sandbox": True,
    }
    assert await state(desk, made["session_id"]) == {
        "session_id": made["session_id"],
        "payment_method": "stripe",
        "amount_micro_usd": 10_000_000,
        "status": "pending",
        "created_at": "2026-05-01T12:00:00Z",
        "completed_at": None,
        "sandbox": True,
    }
    page = await desk.client.get(made["url"])
    assert "no real money moves" in page.text
    assert "Pretend to pay $10.00" in page.text
    assert await holds(desk) == (0, 0)

    paid = await desk.client.post(made["url"], data={"choice": "pay"})
    assert "The credit is in the account" in paid.text
    assert await holds(desk) == (10_000_000, 0)
    after = await state(desk, made["session_id"])
    assert (after["status"], after["credited_micro_usd"]) == ("completed", 10_000_000)
    assert after["completed_at"] == "2026-05-01T12:00:00Z"
    (row,) = await desk.services.db.read(lambda c: ledger_rows(c, CONSUMER))
    assert (row.type, row.reference) == ("stripe_deposit", f"stripe:{made['stripe_session']}")

    # A link is good once.
    for reply in (
        await desk.client.get(made["url"]),
        await desk.client.post(made["url"], data={"choice": "pay"}),
    ):
        assert reply.status_code == 404
    assert await holds(desk) == (10_000_000, 0)


async def test_many_clicks_at_once_credit_once(desk: Desk) -> None:
    url = (await create(desk)).json()["url"]
    await asyncio.gather(*(desk.client.post(url, data={"choice": "pay"}) for _ in range(8)))
    assert await holds(desk) == (10_000_000, 0)


async def test_who_does_not_pay_gets_nothing(desk: Desk) -> None:
    made = (await create(desk)).json()
    assert (await desk.client.post(made["url"], data={"choice": "?"})).status_code == 400
    said = await desk.client.post(made["url"], data={"choice": "cancel"})
    assert "Nothing was bought" in said.text
    assert (await state(desk, made["session_id"]))["status"] == "expired"
    assert (await desk.client.post(made["url"], data={"choice": "pay"})).status_code == 404
    assert await holds(desk) == (0, 0)


async def test_the_same_request_with_a_key_is_one_deposit(desk: Desk) -> None:
    key = {"Idempotency-Key": "once"}
    first, second = await create(desk, headers=key), await create(desk, headers=key)
    assert first.text == second.text
    assert error_of(await create(desk, "11.00", headers=key)) == (409, "conflict")
    assert (await create(desk)).json()["session_id"] != first.json()["session_id"]


@pytest.mark.parametrize(
    "amount",
    ["0.49", "0", "-1", "19.999", "1000000.00", "NaN", "Infinity", "1e30", "ten", "", 10, None],
)
async def test_an_amount_that_cannot_be_bought_is_refused(desk: Desk, amount: Any) -> None:
    assert error_of(await create(desk, amount)) == (400, "invalid_request_error")


async def test_cents_are_exact(desk: Desk) -> None:
    """Twenty dollars less a cent is 1998 cents in binary floating point, truncated."""
    made = (await create(desk, "19.99")).json()
    assert made["amount_micro_usd"] == 19_990_000
    await desk.client.post(made["url"], data={"choice": "pay"})
    assert await holds(desk) == (19_990_000, 0)


async def test_nobody_sees_anothers_session(desk: Desk) -> None:
    session_id = (await create(desk)).json()["session_id"]
    for path in (f"{SESSION}?id={session_id}", f"{SESSION}?id=unknown"):
        reply = await desk.client.get(path, headers=desk.session(OWNER))
        assert error_of(reply) == (404, "not_found")
    assert error_of(await desk.client.get(SESSION, headers=desk.session(OWNER))) == (
        400,
        "invalid_request_error",
    )


async def test_a_referral_code_counts_when_the_credit_is_paid(desk: Desk) -> None:
    now = desk.clock()
    await desk.write(lambda c: referrals.register(c, "FRIEND", account_id=OWNER, now=now))
    for unknown in ("NOBODY", "friend"):
        reply = await create(desk, referral_code=unknown)
        assert error_of(reply) == (400, "invalid_request_error")
    made = [(await create(desk, referral_code="FRIEND")).json() for _ in range(2)]

    async def referrer() -> str | None:
        return await desk.services.db.read(lambda c: referrals.referrer_of(c, CONSUMER))

    assert await referrer() is None
    for paid in made:
        await desk.client.post(paid["url"], data={"choice": "pay"})
        assert await referrer() == OWNER
    assert await holds(desk) == (20_000_000, 0)


async def test_methods_say_that_it_is_a_sandbox(desk: Desk) -> None:
    assert await desk.get("/v1/billing/methods") == {
        "methods": [
            {
                "method": "stripe",
                "display_name": "Sandbox (no real money)",
                "currencies": ["USD"],
                "sandbox": True,
            }
        ],
        "referral": {"enabled": False, "share_percent": 20},
        "sandbox": True,
    }


async def test_the_sandbox_takes_no_webhooks(desk: Desk) -> None:
    reply = await desk.client.post("/v1/billing/stripe/webhook", content=b"{}")
    assert (reply.status_code, reply.headers["content-type"].partition(";")[0]) == (
        400,
        "text/plain",
    )


async def test_an_operator_may_sell_no_credit(tmp_path: Path) -> None:
    async with front_desk(tmp_path, deposits=None) as desk:
        await desk.user(CONSUMER)
        assert error_of(await create(desk)) == (503, "billing_error")
        assert (await desk.get("/v1/billing/methods"))["methods"] == []
        assert (await desk.client.post("/v1/billing/stripe/webhook")).status_code == 503
        assert (await desk.client.get("/sandbox/deposits/x")).status_code == 404


async def test_play_money_is_never_paid_out_for_real(tmp_path: Path) -> None:
    async with front_desk(tmp_path, where=tmp_path / "coordinator.sqlite3") as desk:
        await desk.user(CONSUMER)
        made = (await create(desk)).json()
        await desk.client.post(made["url"], data={"choice": "pay"})
    stripe = Payouts("stripe", stripe_secret_key=Secret("sk_test_x"))
    settings = Settings(state_directory=tmp_path, port=0, payouts=stripe)
    with pytest.raises(UsageError, match="play money") as refused:
        async with running_coordinator(settings, Catalogue.builtin()):
            pass
    assert "--data" in (refused.value.next_step or "")
    # Without it the same ledger may be used for good.
    async with running_coordinator(
        replace(settings, payouts=Payouts()), Catalogue.builtin()
    ) as coordinator:
        assert await coordinator.services.db.read(deposits.holds_play_money)
