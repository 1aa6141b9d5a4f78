"""Earnings, and their running totals: by account, day (UTC), model, provider key and machine.

A total changes in the transaction of the earning it counts, so the two never differ; the audit
adds them up again. Views read whole days from the totals and the rest from the earnings: they are
exact for every span, and a year costs no more than its days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Select,
    Subquery,
    Table,
    case,
    cast,
    func,
    insert,
    literal,
    select,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite

from darkbloom_provider.coordinator.store.schema import (
    EPOCH,
    MICROSECOND,
    Instant,
    earning_totals,
    earnings,
)

DAY: Final = timedelta(days=1)
UNNAMED_MACHINE: Final = ""
"""The machine of earnings that were recorded without one."""

_totals = earning_totals.c
# Built once, as in `books`. Each database has its own way to say "insert or update".
_EARNING = insert(earnings)


def _counting(totals: sqlite.Insert | postgresql.Insert) -> Executable:
    new = totals.excluded
    return totals.on_conflict_do_update(
        index_elements=list(earning_totals.primary_key),
        set_={
            _totals.jobs: _totals.jobs + new.jobs,
            _totals.amount: _totals.amount + new.amount,
            _totals.prompt_tokens: _totals.prompt_tokens + new.prompt_tokens,
            _totals.completion_tokens: _totals.completion_tokens + new.completion_tokens,
            _totals.first_at: case(
                (_totals.first_at > new.first_at, new.first_at), else_=_totals.first_at
            ),
            _totals.last_at: case(
                (_totals.last_at < new.last_at, new.last_at), else_=_totals.last_at
            ),
        },
    )


_COUNT: Final = {
    "sqlite": _counting(sqlite.insert(earning_totals)),
    "postgresql": _counting(postgresql.insert(earning_totals)),
}


def record(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write earnings, each a row of that table without its id, and count them."""
    if not rows:
        return
    connection.execute(_EARNING, rows)
    connection.execute(_COUNT[connection.dialect.name], [_total(row) for row in rows])


def _total(row: Mapping[str, Any]) -> dict[str, Any]:
    """The total of one earning."""
    at: datetime = row["created_at"]
    return {
        "account_id": row["account_id"],
        "day": midnight(at),
        "model": row["model"],
        "provider_key": row["provider_key"],
        "machine_id": row["machine_id"] or UNNAMED_MACHINE,
        "jobs": 1,
        "amount": row["amount"],
        "prompt_tokens": row["prompt_tokens"],
        "completion_tokens": row["completion_tokens"],
        "first_at": at,
        "last_at": at,
    }


def midnight(instant: datetime) -> datetime:
    """The beginning of the day (UTC) that an instant belongs to."""
    return instant - (instant - EPOCH) % DAY


@dataclass(frozen=True, slots=True)
class EarningsFilter:
    """Which earnings a reader wants: a half-open time span, a model, one machine."""

    start: datetime | None = None
    end: datetime | None = None
    model: str | None = None
    provider_key: str | None = None
    """The key of one start of a machine's provider."""
    machine_id: str | None = None
    """The machine's lasting identity."""

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as conditions on `earnings` that must all hold."""
        found = self._besides_time(earnings)
        if self.start is not None:
            found.append(earnings.c.created_at >= self.start)
        if self.end is not None:
            found.append(earnings.c.created_at < self.end)
        return found

    def parts(self) -> tuple[list[ColumnElement[bool]] | None, list[list[ColumnElement[bool]]]]:
        """The same as conditions on `earning_totals`, for its whole days, and on `earnings`.

        None where no whole day lies within.
        """
        first = None if self.start is None else midnight(self.start + DAY - MICROSECOND)
        after = None if self.end is None else midnight(self.end)
        if first is not None and after is not None and first >= after:
            return None, [self.conditions()]
        days = self._besides_time(earning_totals)
        edges: list[tuple[datetime | None, datetime | None]] = []
        if first is not None:
            days.append(_totals.day >= first)
            edges.append((self.start, first))
        if after is not None:
            days.append(_totals.day < after)
            edges.append((after, self.end))
        return days, [
            replace(self, start=start, end=end).conditions() for start, end in edges if start != end
        ]

    def _besides_time(self, table: Table) -> list[ColumnElement[bool]]:
        found = []
        for name in ("model", "provider_key", "machine_id"):
            wanted = getattr(self, name)
            if wanted is not None:
                found.append(table.c[name] == wanted)
        return found


EVERYTHING: Final = EarningsFilter()


def earned(chosen: EarningsFilter, *, account_id: str | None = None) -> Subquery:
    """Earnings added up by day and whatever else a total is kept by, to be added up further.

    Its columns are those of `earning_totals`, without the times of the first and last earning.
    `account_id` leaves out everybody else's.
    """
    days, edges = chosen.parts()
    parts: list[Select[Any]] = []
    if days is not None:
        own = [] if account_id is None else [_totals.account_id == account_id]
        parts.append(
            select(
                _totals.account_id,
                _totals.day,
                _totals.model,
                _totals.provider_key,
                _totals.machine_id,
                _totals.amount,
                _totals.jobs,
                _totals.prompt_tokens,
                _totals.completion_tokens,
            ).where(*own, *days)
        )
    row = earnings.c
    instant = cast(row.created_at, row.amount.type)
    for edge in edges:
        own = [] if account_id is None else [row.account_id == account_id]
        parts.append(
            select(
                row.account_id,
                cast(instant - instant % (DAY // MICROSECOND), Instant).label("day"),
                row.model,
                row.provider_key,
                func.coalesce(row.machine_id, UNNAMED_MACHINE).label("machine_id"),
                row.amount,
                literal(1, row.amount.type).label("jobs"),
                row.prompt_tokens,
                row.completion_tokens,
            ).where(*own, *edge)
        )
    return (parts[0] if len(parts) == 1 else union_all(*parts)).subquery("earned")
