"""The consumer's side: credit, what was spent over time and on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from darkbloom_provider.coordinator.console.views.chart import floor
from darkbloom_provider.coordinator.console.views.choice import Pager, pager
from darkbloom_provider.coordinator.console.views.earn import Graph, graph
from darkbloom_provider.coordinator.earnings.owner_views import Spending, UsageOrder
from darkbloom_provider.coordinator.earnings.views import SeriesPoint, UsageRow
from darkbloom_provider.coordinator.ledger.books import Balance

DAYS_SHOWN: Final = 14
CREDIT_USD: Final = (5, 10, 15, 20)
"""What the page sells; programs may ask for any amount."""

ORDERS: Final[dict[UsageOrder, str]] = {
    "newest": "Newest first",
    "oldest": "Oldest first",
    "dearest": "Highest cost first",
    "cheapest": "Lowest cost first",
}


@dataclass(frozen=True, slots=True)
class CreditForm:
    """The form that buys credit."""

    key: str
    """Makes sending it twice the same as sending it once."""
    sandbox: bool
    """No money moves."""
    amounts: tuple[int, ...] = CREDIT_USD


@dataclass(frozen=True, slots=True)
class BillingView:
    """The page. Amounts in micro-USD."""

    balance: int
    earned_part: int
    """What could be withdrawn instead of spent."""
    credit_part: int
    spent: Spending
    graph: Graph
    usage: tuple[UsageRow, ...]
    order: UsageOrder
    orders: tuple[tuple[UsageOrder, str], ...]
    pager: Pager
    buy: CreditForm | None
    """None where no credit is sold."""


def period(now: datetime) -> datetime:
    """The first day that the graph shows."""
    return floor(now - timedelta(days=DAYS_SHOWN - 1), "day")


def order_of(text: str) -> UsageOrder:
    """An order by its name; the newest first if there is none of this name."""
    return next((order for order in ORDERS if order == text), "newest")


def view(
    balance: Balance,
    spent: Spending,
    points: Sequence[SeriesPoint],
    usage: Sequence[UsageRow],
    *,
    order: UsageOrder,
    page: int,
    buy: CreditForm | None,
    now: datetime,
) -> BillingView:
    """The page of an account."""
    return BillingView(
        balance=balance.balance,
        earned_part=balance.withdrawable,
        credit_part=balance.balance - balance.withdrawable,
        spent=spent,
        graph=graph(points, start=period(now), end=now, bucket="day"),
        usage=tuple(usage),
        order=order,
        orders=tuple(ORDERS.items()),
        pager=pager(page, spent.jobs),
        buy=buy,
    )
