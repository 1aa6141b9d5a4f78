"""What callers write behind the question mark is read, or refused with 400, and never crashes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider import coordinator
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.rest import queries
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.store.schema import EPOCH, MICROSECOND, microseconds
from support.books import NOON

names = st.sampled_from(["limit", "offset", "metric", "window", "bucket", "from", "to", "model"])
values = (
    st.text(max_size=30)
    | st.integers().map(str)
    | st.datetimes().map(lambda d: f"{d.isoformat()}+23:59")
    | st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "24h"])
)
READERS: list[Callable[[dict[str, str]], object]] = [
    queries.history_limit,
    queries.leaderboard_limit,
    queries.offset,
    queries.metric,
    queries.bucket,
    lambda query: queries.window(query, NOON),
]


def ask(reader: Callable[[dict[str, str]], object], query: dict[str, str]) -> object:
    """What the reader says, or the status of its refusal."""
    try:
        return reader(query)
    except ApiError as error:
        return error.status


@given(st.dictionaries(names, values))
def test_any_question_is_answered_or_refused(query: dict[str, str]) -> None:
    for reader in READERS:
        ask(reader, query)
    chosen = ask(queries.earnings_filter, query)
    if isinstance(chosen, EarningsFilter):
        for instant in (chosen.start, chosen.end):
            assert instant is None or abs(microseconds(instant)) < 2**63
    else:
        assert chosen == 400


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_stored_time_is_the_time_that_was_stored(instant: datetime) -> None:
    assert EPOCH + microseconds(instant) * MICROSECOND == instant


def test_a_time_without_a_zone_is_not_stored() -> None:
    with pytest.raises(ValueError, match="zone"):
        microseconds(datetime(2026, 5, 1))  # noqa: DTZ001 - the point of the test


def test_sql_is_built_from_tables_and_bound_values_only() -> None:
    """Text becomes SQL in three places that never see a caller's words."""
    allowed = {"migrations.py", "postgres.py", "storage.py"}
    for file in Path(str(coordinator.__file__)).parent.rglob("*.py"):
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        if file.name not in allowed:
            assert not called & {"exec_driver_sql", "literal_column", "text"}, file.name
