"""Books to try things on: a migrated database file, a fixed clock, and short ways to act."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.ledger.reservations import Serving, Settlement
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store import migrations
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.coordinator.store.storage import open_storage, sqlite_engine
from darkbloom_provider.protocol.money import Price

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
QWEN = "qwen3.5-27b-claude-opus-8bit"
QWEN_PRICE = Price(100_000, 780_000)
OWNER = "owner-account"
CONSUMER = "consumer-account"
WALLET = "0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417"
MACHINE = "a" * 32
LINKED = Serving("session-1", "key-1", account_id=OWNER, wallet_address=WALLET, machine_id=MACHINE)
UNLINKED = Serving("session-2", "key-2", wallet_address=WALLET, machine_id=MACHINE)
NOBODY = Serving("session-3", "key-3")


@dataclass(slots=True)
class Clock:
    """Stands still until it is told to move."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return (self.now - NOON).total_seconds()

    def forward(self, by: timedelta) -> None:
        self.now += by


def writing_engine(place: Path | str) -> Engine:
    """The writing side of a database, which may be empty. The caller disposes of it."""
    if isinstance(place, Path):
        return sqlite_engine(place, writes=True)
    return open_storage(place, beside=False).writer


def fresh_engine(place: Path | str) -> Engine:
    """A migrated database, used directly. The caller disposes of it."""
    engine = writing_engine(place)
    migrations.migrate(engine, Clock())
    return engine


@contextlib.asynccontextmanager
async def opened(
    place: Path | str, clock: Callable[[], datetime] | None = None
) -> AsyncIterator[Database]:
    """The database as the coordinator opens it."""
    database = await Database.open(place, clock=clock or Clock())
    try:
        yield database
    finally:
        await database.close()


@dataclass(slots=True)
class Shop:
    """One consumer buying from one owner, on a given connection."""

    connection: Connection
    policy: Policy = field(default_factory=Policy)
    price: Price = QWEN_PRICE
    clock: Clock = field(default_factory=Clock)

    def reserve(
        self, reservation_id: str, amount: int, account_id: str = CONSUMER, *, run: int = 0
    ) -> None:
        reservations.Reserve(
            reservation_id=reservation_id,
            account_id=account_id,
            model=QWEN,
            amount=amount,
            now=self.clock(),
            run=run,
        )(self.connection)

    def settle(
        self,
        reservation_id: str,
        prompt: int,
        completion: int,
        *,
        serving: Serving = LINKED,
        job_id: str | None = None,
    ) -> Settlement:
        return reservations.Settle(
            reservation_id=reservation_id,
            job_id=job_id or f"job-{reservation_id}",
            serving=serving,
            prompt_tokens=prompt,
            completion_tokens=completion,
            price=self.price,
            policy=self.policy,
            now=self.clock(),
        )(self.connection)

    def leave(
        self, reservation_id: str, prompt: int, relayed: int, *, serving: Serving = LINKED
    ) -> Settlement:
        return reservations.Settle(
            reservation_id=reservation_id,
            job_id=f"job-{reservation_id}",
            serving=serving,
            prompt_tokens=prompt,
            completion_tokens=relayed,
            price=self.price,
            policy=self.policy,
            now=self.clock(),
            partial=True,
        )(self.connection)

    def refund(self, reservation_id: str) -> Settlement | None:
        return reservations.Refund(reservation_id=reservation_id, now=self.clock())(self.connection)

    def deposit(self, amount: int, account_id: str = CONSUMER) -> None:
        reservations.deposit(self.connection, account_id, amount, now=self.clock())

    def earn(self, amount: int, account_id: str = CONSUMER) -> None:
        """Withdrawable money, however it came."""
        reservations.deposit(
            self.connection, account_id, amount, now=self.clock(), entry_type="admin_reward"
        )


def add_up_again(connection: Connection) -> None:
    """The totals as the migration makes them, for a test that has changed earnings behind them."""
    connection.execute(text("DROP TABLE earning_totals"))
    connection.execute(text("DROP INDEX earnings_by_model"))
    step = next(step for step in migrations.shipped() if step.name == "earning_totals")
    for statement in step.statements(connection.dialect.name):
        connection.exec_driver_sql(statement)
