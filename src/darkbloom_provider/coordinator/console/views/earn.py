"""The Earn page: figures, graph, and the full history of payouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from darkbloom_provider.coordinator.console.views.chart import (
    WIDTHS,
    Chart,
    Span,
    chart,
    floor,
    spans,
)
from darkbloom_provider.coordinator.console.views.choice import Choice, Pager, pager
from darkbloom_provider.coordinator.console.views.countries import COUNTRIES
from darkbloom_provider.coordinator.console.views.payouts import PayoutPanel, WithdrawalRow
from darkbloom_provider.coordinator.console.writing import counted, scale
from darkbloom_provider.coordinator.earnings.owner_views import HistoryRow
from darkbloom_provider.coordinator.earnings.views import Bucket, SeriesPoint, Sum
from darkbloom_provider.coordinator.ledger.books import Balance
from darkbloom_provider.protocol.money import format_usd

DAYS_SHOWN: Final = 30
HOURS_SHOWN: Final = 48
_MACHINE_CHARACTERS: Final = 6


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers at the head of the page, in micro-USD where they are money."""

    balance: int
    withdrawable: int
    credit: int
    """The part that can be spent here and not withdrawn."""
    earned: int
    jobs: int
    average: int
    last_day: Sum
    last_week: Sum


@dataclass(frozen=True, slots=True)
class Graph:
    """Earnings and use over time, drawn and as numbers."""

    earnings: Chart
    tokens: Chart
    spans: tuple[Span, ...]
    total: Sum
    tokens_total: int
    each: str
    """What one bar stands for."""
    period: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A line of the history."""

    row: HistoryRow
    machine: str


@dataclass(frozen=True, slots=True)
class EarnView:
    """Everything on the page."""

    figures: Figures
    graph: Graph
    history: tuple[HistoryEntry, ...]
    filtered: Sum
    choice: Choice
    pager: Pager
    models: tuple[str, ...]
    payouts: PayoutPanel
    withdrawals: tuple[WithdrawalRow, ...]
    has_machine: bool
    countries: tuple[tuple[str, str], ...] = COUNTRIES


def figures(balance: Balance, lifetime: Sum, last_day: Sum, last_week: Sum) -> Figures:
    """The head of the page."""
    return Figures(
        balance=balance.balance,
        withdrawable=balance.withdrawable,
        credit=balance.balance - balance.withdrawable,
        earned=lifetime.micro_usd,
        jobs=lifetime.count,
        average=lifetime.micro_usd // lifetime.count if lifetime.count else 0,
        last_day=last_day,
        last_week=last_week,
    )


def graph_period(choice: Choice, now: datetime) -> tuple[datetime, datetime]:
    """The time that the graph shows: what was chosen, else the last 30 days or 48 hours."""
    chosen = choice.filter
    end = min(chosen.end, now) if chosen.end else now
    length = timedelta(days=DAYS_SHOWN - 1)
    if choice.bucket == "hour":
        length = timedelta(hours=HOURS_SHOWN - 1)
    start = chosen.start or end - length
    return floor(min(start, end), choice.bucket), end


def graph(
    points: Sequence[SeriesPoint], *, start: datetime, end: datetime, bucket: Bucket
) -> Graph:
    """The graph of some earnings."""
    found = spans(points, start=start, end=end, bucket=bucket)
    width = found[1].start - found[0].start if len(found) > 1 else WIDTHS[bucket]
    names = [_span_name(span.start, bucket) for span in found]
    return Graph(
        earnings=chart(
            [span.amount for span in found],
            [
                f"{name}: {format_usd(span.amount)}, {counted(span.jobs, 'job')}, "
                f"{counted(span.tokens, 'token')}"
                for name, span in zip(names, found, strict=True)
            ],
            names,
            written=scale,
        ),
        tokens=chart(
            [span.tokens for span in found],
            [
                f"{name}: {span.prompt_tokens:,} tokens read, {span.completion_tokens:,} written"
                for name, span in zip(names, found, strict=True)
            ],
            names,
            written=_short_count,
        ),
        spans=tuple(found),
        total=Sum(sum(span.amount for span in found), sum(span.jobs for span in found)),
        tokens_total=sum(span.tokens for span in found),
        each=_width_name(width // WIDTHS[bucket], bucket),
        period=f"{names[0]} – {names[-1]}" if len(names) > 1 else names[0],
    )


def history(rows: Sequence[HistoryRow], names: dict[str, str]) -> tuple[HistoryEntry, ...]:
    """The lines of the history; `names` are those of machines that are known now, by identity."""
    return tuple(HistoryEntry(row, machine_name(row.machine_id, names)) for row in rows)


def machine_name(machine_id: str | None, names: dict[str, str]) -> str:
    """What to call a machine: what it is if it is connected, else the beginning of its identity."""
    if machine_id is None:
        return "unnamed"
    return names.get(machine_id) or f"Machine {machine_id[:_MACHINE_CHARACTERS]}"


def view(
    *,
    head: Figures,
    drawn: Graph,
    rows: tuple[HistoryEntry, ...],
    filtered: Sum,
    choice: Choice,
    models: Sequence[str],
    panel: PayoutPanel,
    withdrawals: tuple[WithdrawalRow, ...],
    has_machine: bool,
) -> EarnView:
    """The whole page."""
    offered = dict.fromkeys([*models, *([choice.model] if choice.model else [])])
    return EarnView(
        figures=head,
        graph=drawn,
        history=rows,
        filtered=filtered,
        choice=choice,
        pager=pager(choice.page, filtered.count),
        models=tuple(offered),
        payouts=panel,
        withdrawals=withdrawals,
        has_machine=has_machine,
    )


def _span_name(start: datetime, bucket: Bucket) -> str:
    utc = start.astimezone(UTC)
    day = f"{utc.day} {utc:%b}"
    return f"{day} {utc:%H:%M}" if bucket == "hour" else day


def _width_name(places: int, bucket: Bucket) -> str:
    return f"one {bucket}" if places == 1 else f"{places} {bucket}s"


def _short_count(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)
