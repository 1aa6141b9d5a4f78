"""`darkbloom coordinator deposits`: what was bought, and what banks took back of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.deposits import ledger
from darkbloom_provider.coordinator.deposits.rail import CheckoutReport, Reversal
from darkbloom_provider.coordinator.store.database import Database
from support.books import CONSUMER, NOON, opened

EMAIL = "consumer@example.org"
CENTS = 2_500


def deposit(
    connection: Connection,
    name: str,
    *,
    paid: bool = True,
    refunded: int | None = None,
    disputed: int | None = None,
    minutes: int = 0,
) -> None:
    now = NOON + timedelta(minutes=minutes)
    made = ledger.request(
        connection,
        CONSUMER,
        deposit_id=name,
        rail="stripe",
        amount=CENTS * 10_000,
        referral_code="",
        now=now,
    )
    if paid:
        report = CheckoutReport("paid", CENTS, f"pi_{name}")
        made = ledger.note(connection, made, report, external_id=f"cs_{name}", now=now)
    if refunded is not None or disputed is not None:
        ledger.note_reversal(connection, made, Reversal(refunded, disputed), payment_id=None)


@pytest.fixture
async def books(place: Path | str) -> AsyncIterator[Database]:
    async with opened(place) as db:
        await db.write(lambda c: people.create_user(c, account_id=CONSUMER, email=EMAIL, now=NOON))
        yield db


async def told(place: Path | str, tmp_path: Path, *arguments: str) -> Result:
    url = place if isinstance(place, str) else f"sqlite:///{place}"
    where = ["--database", url, "--data", str(tmp_path / "state")]
    words = ["coordinator", "deposits", *where, *arguments]
    result = await asyncio.to_thread(CliRunner().invoke, darkbloom, words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


async def rows(place: Path | str, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    document = json.loads((await told(place, tmp_path, "--json", *arguments)).stdout)
    found: list[dict[str, Any]] = document["deposits"]
    return found


async def test_every_deposit_says_how_it_stands(
    books: Database, place: Path | str, tmp_path: Path
) -> None:
    def fill(connection: Connection) -> None:
        deposit(connection, "open", paid=False)
        deposit(connection, "paid", minutes=1)
        deposit(connection, "part", refunded=1_000, minutes=2)
        deposit(connection, "whole", refunded=CENTS, minutes=3)
        deposit(connection, "fought", disputed=CENTS, minutes=4)
        deposit(connection, "won", disputed=0, minutes=5)

    await books.write(fill)
    found = await rows(place, tmp_path)
    assert [(row["id"], row["standing"]) for row in found] == [
        ("won", "paid"),
        ("fought", "disputed"),
        ("whole", "refunded"),
        ("part", "partly refunded"),
        ("paid", "paid"),
        ("open", "pending"),
    ]
    assert found[3] == {
        "id": "part",
        "email": EMAIL,
        "account_id": CONSUMER,
        "balance_micro_usd": 5 * CENTS * 10_000,
        "rail": "stripe",
        "external_id": "cs_part",
        "payment_id": "pi_part",
        "standing": "partly refunded",
        "amount_micro_usd": CENTS * 10_000,
        "credited_micro_usd": CENTS * 10_000,
        "refunded_micro_usd": 10_000_000,
        "disputed_micro_usd": 0,
        "created_at": "2026-05-01T12:02:00Z",
        "completed_at": "2026-05-01T12:02:00Z",
    }
    shown = (await told(place, tmp_path)).output
    assert "partly refunded" in shown
    assert "-$10.00" in shown
    assert EMAIL in shown


async def test_what_went_back_is_found_among_many(
    books: Database, place: Path | str, tmp_path: Path
) -> None:
    def fill(connection: Connection) -> None:
        deposit(connection, "old", disputed=CENTS)
        for number in range(1, 60):
            deposit(connection, f"paid-{number}", minutes=number)

    await books.write(fill)
    assert [row["id"] for row in await rows(place, tmp_path, "--reversed")] == ["old"]
    newest = await rows(place, tmp_path)
    assert (len(newest), newest[0]["id"]) == (50, "paid-59")
    assert len(await rows(place, tmp_path, "--limit", "1000")) == 60
    shown = (await told(place, tmp_path)).output
    assert "--limit" in shown
    assert "1 of all deposits went back" in shown
    only = (await told(place, tmp_path, "--reversed")).output
    assert "paid-1" not in only
    assert "does not take the credit back by itself" in only


async def test_a_network_that_sold_nothing_says_so(
    books: Database, place: Path | str, tmp_path: Path
) -> None:
    assert await rows(place, tmp_path) == []
    assert "Nobody has bought credit yet." in (await told(place, tmp_path)).output
    await books.write(lambda c: deposit(c, "paid"))
    assert "No deposit went back." in (await told(place, tmp_path, "--reversed")).output
