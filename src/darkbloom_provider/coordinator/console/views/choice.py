"""What a visitor chose to see: dates, a model, a page. Read from an address and written back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from urllib.parse import urlencode

from darkbloom_provider.coordinator.earnings.views import Bucket
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.rest.queries import MAX_OFFSET, refuse

ROWS: Final = 50
"""Of one page."""
MAX_MODEL_CHARACTERS: Final = 300

_PAGE: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which earnings a visitor wants to see. Both days belong to it; days are UTC's."""

    first: date | None = None
    last: date | None = None
    model: str = ""
    bucket: Bucket = "day"
    page: int = 1

    @property
    def narrowed(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.first or self.last or self.model)

    @property
    def filter(self) -> EarningsFilter:
        """The same, as the views of money take it."""
        return EarningsFilter(
            start=_midnight(self.first) if self.first else None,
            end=_midnight(self.last) + _DAY if self.last else None,
            model=self.model or None,
        )

    @property
    def offset(self) -> int:
        """Rows before its page."""
        return (self.page - 1) * ROWS

    def query(self, *, page: int) -> str:
        """The part of an address that says this, on a page of its rows."""
        fields = {
            "from": self.first.isoformat() if self.first else "",
            "to": self.last.isoformat() if self.last else "",
            "model": self.model,
            "span": "" if self.bucket == "day" else self.bucket,
            "page": "" if page == 1 else str(page),
        }
        return urlencode({name: value for name, value in fields.items() if value})


@dataclass(frozen=True, slots=True)
class Pager:
    """Where a page of rows stands among all."""

    page: int
    pages: int
    first_row: int
    last_row: int
    rows: int


def read_choice(query: Mapping[str, str]) -> Choice:
    """The choice that an address says.

    Raises:
        ApiError: 400, it makes no sense: nobody must take a wrong sum for the right one.
    """
    first, last = _date(query, "from"), _date(query, "to")
    if first and last and first > last:
        raise refuse("the first day must not be after the last")
    model = query.get("model", "")
    if len(model) > MAX_MODEL_CHARACTERS or not model.isprintable():
        raise refuse("there is no such model")
    span = query.get("span", "") or "day"
    if span not in {"hour", "day"}:
        raise refuse("span must be hour or day")
    return Choice(first, last, model, "hour" if span == "hour" else "day", read_page(query))


def read_page(query: Mapping[str, str]) -> int:
    """The number of a page, from 1.

    Raises:
        ApiError: 400, it is none.
    """
    text = query.get("page", "") or "1"
    if _PAGE.fullmatch(text) is None or int(text) * ROWS > MAX_OFFSET:
        raise refuse("page must be a whole number of at least 1")
    return int(text)


def pager(page: int, rows: int) -> Pager:
    """Where a page stands among so many rows. A page past the end is the empty last one."""
    pages = max(-(-rows // ROWS), 1)
    first = (page - 1) * ROWS + 1
    return Pager(page, pages, min(first, rows), min(page * ROWS, rows), rows)


def _date(query: Mapping[str, str], name: str) -> date | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    # The years that the ledger's clock and a day more or less can hold.
    if found is None or not 1971 <= found.year <= 9998:  # noqa: PLR2004
        raise refuse(f"{name} must be a day, like 2026-05-01")
    return found


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time.min, UTC)
