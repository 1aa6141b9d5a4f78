"""How much was asked and answered here: all of it, and minute by minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, cast, func, select

from darkbloom_provider.coordinator.store.schema import EPOCH, MICROSECOND, jobs

MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Minute:
    """What was finished in one minute from `timestamp` on."""

    timestamp: datetime
    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that were paid for, since the beginning and lately."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    minutes: Sequence[Minute]
    """Those that had any traffic, ascending."""


def traffic(connection: Connection, *, since: datetime) -> Traffic:
    """All traffic, and by minute what was finished from `since` on."""
    paid = jobs.c.job_id.is_not(None)
    counts = (func.count(), _sum(jobs.c.prompt_tokens), _sum(jobs.c.completion_tokens))
    requests, prompt, completion = connection.execute(
        select(*counts).select_from(jobs).where(paid)
    ).one()
    instant, width = cast(jobs.c.closed_at, jobs.c.cost.type), MINUTE // MICROSECOND
    start = (instant - instant % width).label("start")
    rows = connection.execute(
        select(start, *counts)
        .where(paid, jobs.c.closed_at >= since)
        .group_by(start)
        .order_by(start)
    )
    minutes = [
        Minute(EPOCH + begun * MICROSECOND, count, read, written, read + written)
        for begun, count, read, written in rows
    ]
    return Traffic(requests, prompt, completion, minutes)


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    # Cast: PostgreSQL sums integers into NUMERIC.
    return cast(func.coalesce(func.sum(column), 0), jobs.c.cost.type)
