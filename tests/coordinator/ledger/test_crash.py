"""A coordinator killed in the middle of a transaction loses nothing and invents nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from darkbloom_provider.coordinator.ledger import books, reservations
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.ledger.books import Balance
from support.books import CONSUMER, NOON, OWNER, Shop, opened
from support.kill_runs import kill_at_failpoints

VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from support.books import Shop, opened

def die(connection):
    shop = Shop(connection)
    getattr(shop, sys.argv[2])("open", 120, 380) if sys.argv[2] != "refund" else shop.refund("open")
    shop.reserve("never", 1_000)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with opened(Path(sys.argv[1])) as db:
        await db.write(lambda c: Shop(c).deposit(600))
        await db.write(lambda c: Shop(c).earn(5_400))
        for name in ("done", "open", "other"):
            await db.write(lambda c: Shop(c).reserve(name, 1_500))
        await db.write(lambda c: Shop(c).settle("done", 120, 380))
        await db.write(die)

asyncio.run(main())
"""


@pytest.mark.parametrize("act", ["settle", "leave", "refund"])
async def test_a_kill_inside_a_transaction_leaves_clean_books(tmp_path: Path, act: str) -> None:
    path = tmp_path / "ledger.sqlite3"
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", VICTIM, str(path), act],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    async with opened(path) as db:
        # Acknowledged work is there, the interrupted transaction is not.
        assert await db.read(audit) == []
        held = await db.read(lambda c: books.balance_of(c, books.RESERVATIONS))
        assert held.balance == 3_000
        assert await db.read(lambda c: books.balance_of(c, OWNER)) == Balance(308, 308)

        refunded = await db.write(lambda c: reservations.recover_open_reservations(c, now=NOON))
        assert refunded == 2
        assert await db.read(audit) == []
        after = await db.read(lambda c: books.balance_of(c, CONSUMER))
        assert after == Balance(6_000 - 308, 5_400)
        assert await db.read(lambda c: books.balance_of(c, OWNER)) == Balance(308, 308)

        # A late completion of a refunded request moves nothing.
        late = await db.write(lambda c: Shop(c).settle("open", 120, 380))
        assert not late.applied


def test_a_kill_at_a_failpoint_leaves_the_books_right(tmp_path: Path, place: Path | str) -> None:
    """A slice of `chaos/test_money_chaos`, which kills at every failpoint."""
    assert kill_at_failpoints(tmp_path, place, step=151).runs >= 4
