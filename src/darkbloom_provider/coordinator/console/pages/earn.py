"""The Earn page, and its history as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from darkbloom_provider.coordinator.accounts import device_login
from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.pages.machines import account_figures, machine_names
from darkbloom_provider.coordinator.console.pages.payouts import payout_state
from darkbloom_provider.coordinator.console.views import earn as earn_view
from darkbloom_provider.coordinator.console.views.choice import ROWS, Choice, read_choice
from darkbloom_provider.coordinator.console.views.earn import EarnView
from darkbloom_provider.coordinator.console.views.payouts import PayoutPanel, WithdrawalRow
from darkbloom_provider.coordinator.console.visit import Visit
from darkbloom_provider.coordinator.earnings import owner_views, views
from darkbloom_provider.coordinator.earnings.owner_views import HistoryRow
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.rest.replies import rfc3339
from darkbloom_provider.protocol.money import decimal_usd

CSV_ROWS: Final = 1000
"""Read at a time."""
CSV_COLUMNS: Final = (
    "time",
    "model",
    "machine",
    "job_id",
    "prompt_tokens",
    "completion_tokens",
    "amount_usd",
    "amount_micro_usd",
)
WITHDRAWALS_SHOWN: Final = 5


async def show(visit: Visit) -> Response:
    """Balance, graph, history, payouts."""
    choice = read_choice(visit.query)
    balance = await visit.read(lambda c: books.balance_of(c, visit.owner.account_id))
    panel, withdrawals = await payout_state(
        visit, balance.withdrawable, refresh=visit.query.get("stripe_return") == "1"
    )
    names = machine_names(visit)
    view = await visit.read(
        lambda c: _view(c, visit, choice, names, (panel, withdrawals[:WITHDRAWALS_SHOWN]))
    )
    return visit.page("earn.html", view)


@dataclass(frozen=True, slots=True)
class Earned:
    """What the page reads about earnings for one choice."""

    page: views.EarningsPage
    rows: list[HistoryRow]
    points: list[views.SeriesPoint]
    models: list[str]


def earned(connection: Connection, account: str, choice: Choice, now: datetime) -> Earned:
    """Every bar and line of an account's earnings."""
    start, _ = earn_view.graph_period(choice, now)
    return Earned(
        page=views.account_earnings(connection, account, limit=0, chosen=choice.filter),
        rows=owner_views.history(
            connection, account, chosen=choice.filter, limit=ROWS, offset=choice.offset
        ),
        points=views.earnings_series(
            connection, account, bucket=choice.bucket, chosen=replace(choice.filter, start=start)
        ),
        models=owner_views.models_earned(connection, account),
    )


def _view(
    connection: Connection,
    visit: Visit,
    choice: Choice,
    names: dict[str, str],
    payouts: tuple[PayoutPanel, tuple[WithdrawalRow, ...]],
) -> EarnView:
    account, now = visit.owner.account_id, visit.console.services.clock()
    found = earned(connection, account, choice, now)
    start, end = earn_view.graph_period(choice, now)
    return earn_view.view(
        head=account_figures(connection, visit),
        drawn=earn_view.graph(found.points, start=start, end=end, bucket=choice.bucket),
        rows=earn_view.history(found.rows, names),
        filtered=found.page.filtered,
        choice=choice,
        models=found.models,
        panel=payouts[0],
        withdrawals=payouts[1],
        has_machine=bool(names or device_login.linked_devices(connection, account)),
    )


async def history_file(visit: Visit) -> Response:
    """The whole filtered history as CSV (RFC 4180), newest first."""
    choice = read_choice(visit.query)
    first = await _rows(visit, choice, None)
    return StreamingResponse(
        _csv(visit, choice, first),
        media_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": 'attachment; filename="earnings.csv"',
            "Cache-Control": "no-store",
        },
    )


async def _csv(visit: Visit, choice: Choice, rows: list[HistoryRow]) -> AsyncIterator[str]:
    yield _lines([CSV_COLUMNS])
    while rows:
        yield _lines([csv_row(row) for row in rows])
        rows = await _rows(visit, choice, rows[-1])


async def _rows(visit: Visit, choice: Choice, after: HistoryRow | None) -> list[HistoryRow]:
    account = visit.owner.account_id
    return await visit.read(
        lambda c: owner_views.history(c, account, chosen=choice.filter, limit=CSV_ROWS, after=after)
    )


def csv_row(row: HistoryRow) -> tuple[str, ...]:
    """One line. Texts of others cannot become formulas where the file is opened."""
    return (
        rfc3339(row.created_at),
        _inert(row.model),
        _inert(row.machine_id or ""),
        _inert(row.job_id),
        str(row.prompt_tokens),
        str(row.completion_tokens),
        decimal_usd(row.amount),
        str(row.amount),
    )


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _lines(rows: list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


PAGES: Final = (Page("/earn", show), Page("/earn/history.csv", history_file))
