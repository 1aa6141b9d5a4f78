"""What an owner's Earn page costs the database when a year lies behind it.

One account has all the year's jobs, evenly, done by four machines with three models, a fourth model
in one of ten thousand. The slowest of the pages that an owner may ask for counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from benchmarks import ours
from benchmarks.figure import Figure
from benchmarks.scale import Scale
from darkbloom_provider.coordinator.console.pages import earn
from darkbloom_provider.coordinator.console.views.choice import ROWS, Choice
from darkbloom_provider.coordinator.earnings import owner_views, views
from darkbloom_provider.coordinator.store import migrations
from darkbloom_provider.coordinator.store.schema import microseconds
from darkbloom_provider.coordinator.store.storage import sqlite_engine

OWNER = "owner"
NOW = datetime(2026, 5, 1, 12, 34, 56, tzinfo=UTC)
YEAR = timedelta(days=365)
RARE = "model-3"
MONTH = (date(2026, 2, 1), date(2026, 2, 28))

_ACCOUNT = "INSERT INTO accounts VALUES (:owner, 'user', 0, 0, 0)"
_EARNINGS = """
INSERT INTO earnings (account_id, provider_id, provider_key, machine_id, job_id, model, amount,
  prompt_tokens, completion_tokens, created_at)
WITH RECURSIVE numbers (n) AS (
  SELECT CAST(1 AS BIGINT) UNION ALL SELECT n + 1 FROM numbers WHERE n < :jobs
)
SELECT :owner, 'session', 'key-' || (n % 4), 'machine-' || (n % 4), 'job-' || n,
  'model-' || CASE n % 10000 WHEN 0 THEN 3 ELSE n % 3 END,
  100 + n % 900, 50, n % 700, :first + n * :step
FROM numbers
"""


def measure(scale: Scale) -> list[Figure]:
    """Milliseconds of all queries of the slowest page."""
    with ours.short_directory() as directory:
        engine = year(directory / "ledger.sqlite3", scale.earnings)
        try:
            slowest = max(pages(engine, scale).values())
        finally:
            engine.dispose()
    return [Figure("coord.earn_query_ms", 1e3 * slowest, "ms")]


def year(path: Path, jobs: int) -> Engine:
    """A migrated database with a year of earnings. Read only: there are no jobs behind them."""
    writer = sqlite_engine(path, writes=True)
    migrations.migrate(writer, lambda: NOW)
    with writer.connect() as connection:
        # Outside a transaction, or it would have no effect.
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys = OFF")
    with writer.begin() as connection:
        fill(connection, jobs)
    writer.dispose()
    return sqlite_engine(path, writes=False)


def fill(connection: Connection, jobs: int) -> None:
    """The earnings, and their totals as the migration adds them up."""
    first = microseconds(NOW - YEAR)
    step = (microseconds(NOW) - first) // (jobs + 1)
    connection.execute(text(_ACCOUNT), {"owner": OWNER})
    values = {"owner": OWNER, "jobs": jobs, "first": first, "step": step}
    connection.execute(text(_EARNINGS), values)
    migration = next(step for step in migrations.shipped() if step.name == "earning_totals")
    for statement in migration.statements(connection.dialect.name):
        if statement.startswith("INSERT"):
            connection.exec_driver_sql(statement)


def pages(engine: Engine, scale: Scale) -> dict[str, float]:
    """Seconds of each page that an owner may ask for: medians."""
    with engine.connect() as connection:
        last = scale.earnings // ROWS
        choices = {
            "all": Choice(),
            "hours": Choice(bucket="hour"),
            "a month": Choice(*MONTH),
            "a model": Choice(model="model-1"),
            "a rare model": Choice(model=RARE),
            "a month of a model": Choice(*MONTH, model="model-1"),
            "the last page": Choice(page=last),
        }
        return {
            name: _median(lambda choice=choice: _page(connection, choice), scale)  # type: ignore[misc]
            for name, choice in choices.items()
        }


def _page(connection: Connection, choice: Choice) -> None:
    """All that the page reads of earnings: its head, then the rest."""
    views.account_earnings(connection, OWNER, limit=0)
    for days in (1, 7):
        owner_views.earned_since(connection, OWNER, NOW - timedelta(days=days))
    earn.earned(connection, OWNER, choice, NOW)


def others(engine: Engine, scale: Scale) -> dict[str, float]:
    """Seconds of what else reads the same earnings: medians."""
    with engine.connect() as connection:
        month = NOW - timedelta(days=30)
        return {
            "machines": _median(lambda: owner_views.earned_by_machine(connection, OWNER), scale),
            "leaderboard": _median(
                lambda: views.leaderboard(connection, metric="tokens", since=None, limit=50), scale
            ),
            "leaderboard of a month": _median(
                lambda: views.leaderboard(connection, metric="tokens", since=month, limit=50), scale
            ),
            "network": _median(lambda: views.network_totals(connection, since=None), scale),
            "network of a month": _median(
                lambda: views.network_totals(connection, since=month), scale
            ),
        }


def _median(read: Callable[[], object], scale: Scale) -> float:
    seconds = []
    for _ in range(scale.warm_ups + scale.rounds):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[scale.warm_ups :])
