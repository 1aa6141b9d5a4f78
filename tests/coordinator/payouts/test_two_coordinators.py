"""Two coordinators on one PostgreSQL database: what is withdrawn from both leaves once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.payouts import withdrawals
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.withdrawals import Withdrawal
from support.books import OWNER
from support.desk import Desk, counted_hex, front_desk

EARNED = 10_000_000
ONBOARD = "/v1/billing/stripe/onboard"
WITHDRAW = "/v1/billing/withdraw/stripe"

Desks = tuple[Desk, Desk]


@pytest.fixture
async def desks(tmp_path: Path, postgres_url: str) -> AsyncIterator[Desks]:
    second = counted_hex("second")
    async with (
        front_desk(tmp_path, where=postgres_url) as one,
        front_desk(tmp_path, where=postgres_url, new_id=lambda: second(16)) as two,
    ):
        await one.user(OWNER)
        await one.books(lambda shop: shop.earn(EARNED, OWNER))
        link = (await one.client.post(ONBOARD, headers=one.session(OWNER))).json()["url"]
        await one.client.post(link, data={"destination": "bank"})
        yield one, two
        assert await two.services.db.read(audit) == []


async def withdraw(desk: Desk, amount: str, **headers: str) -> httpx.Response:
    return await desk.client.post(
        WITHDRAW, headers=desk.session(OWNER) | headers, json={"amount_usd": amount}
    )


async def history(desk: Desk) -> list[Withdrawal]:
    return await desk.services.db.read(lambda c: withdrawals.history(c, OWNER, limit=200))


async def test_all_of_the_balance_asked_from_both_at_once_leaves_once(desks: Desks) -> None:
    replies = await asyncio.gather(*(withdraw(desk, "10.00") for _ in range(5) for desk in desks))
    assert sorted(reply.status_code for reply in replies) == [200] + [400] * 9
    assert len(await history(desks[0])) == 1
    balance = await desks[1].services.db.read(lambda c: books.balance_of(c, OWNER))
    assert balance == books.NOTHING


async def test_one_key_sent_to_both_at_once_makes_one_withdrawal(desks: Desks) -> None:
    replies = await asyncio.gather(
        *(withdraw(d, "2.00", **{"Idempotency-Key": "k"}) for _ in range(5) for d in desks)
    )
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["withdrawal_id"] for reply in replies}) == 1
    assert len(await history(desks[0])) == 1


async def test_a_due_step_is_taken_by_one_of_them(desks: Desks) -> None:
    for _ in range(4):
        assert (await withdraw(desks[0], "1.00")).status_code == 200
    for desk in desks:
        desk.clock.forward(timedelta(days=2))
    workers = [w for desk in desks if isinstance(w := desk.services.payouts, PayoutDesk)]
    taken = await asyncio.gather(*(worker.take_due_steps() for worker in workers))
    assert sum(taken) == 4
    assert [row.status for row in await history(desks[1])] == ["paid"] * 4
