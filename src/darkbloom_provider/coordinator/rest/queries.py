"""What callers write behind the question mark: limits, windows, times.

Limits that make no sense become the default, as in the network. A filter that makes no sense is
refused: a reader must never take a wrong sum for the right one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Final

from darkbloom_provider.coordinator.earnings.views import Bucket, Metric
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.rest.replies import ApiError

HISTORY_LIMIT: Final = 50
MAX_HISTORY: Final = 1000
LEADERBOARD_LIMIT: Final = 50
MAX_LEADERBOARD: Final = 200
MAX_OFFSET: Final = 2**31 - 1
MAX_TOKENS: Final = 10**7

_DIGITS: Final = re.compile(r"\+?[0-9]{1,18}", re.ASCII)
_WINDOWS: Final[Mapping[str, timedelta | None]] = {
    "24h": timedelta(hours=24),
    "1d": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
    "lifetime": None,
}

Query = Mapping[str, str]


def refuse(message: str) -> ApiError:
    """A 400 reply for a parameter."""
    return ApiError(HTTPStatus.BAD_REQUEST, "invalid_request_error", message)


def history_limit(query: Query) -> int:
    """Rows of an earnings history: 50 unless a positive number is given, at most 1000."""
    given = _number(query.get("limit", ""))
    return min(given, MAX_HISTORY) if given else HISTORY_LIMIT


def leaderboard_limit(query: Query) -> int:
    """Places on the leaderboard: 50 unless a number from 1 to 200 is given."""
    given = _number(query.get("limit", ""))
    return given if given is not None and 1 <= given <= MAX_LEADERBOARD else LEADERBOARD_LIMIT


def offset(query: Query) -> int:
    """Rows to skip."""
    text = query.get("offset", "")
    given = _number(text)
    if text and (given is None or given > MAX_OFFSET):
        raise refuse("offset must be a whole number of at least 0")
    return given or 0


def tokens(query: Query, name: str, default: int) -> int:
    """A number of tokens, `default` if none is given."""
    text = query.get(name, "")
    given = _number(text)
    if text and (given is None or given > MAX_TOKENS):
        raise refuse(f"{name} must be a whole number from 0 to {MAX_TOKENS}")
    return default if given is None else given


def metric(query: Query) -> Metric:
    """What the leaderboard is sorted by."""
    match query.get("metric", ""):
        case "" | "earnings":
            return "earnings"
        case "tokens":
            return "tokens"
        case "jobs":
            return "jobs"
        case _:
            raise refuse("metric must be earnings, tokens or jobs")


def bucket(query: Query) -> Bucket:
    """How wide the points of a series are."""
    match query.get("bucket", ""):
        case "" | "day":
            return "day"
        case "hour":
            return "hour"
        case _:
            raise refuse("bucket must be hour or day")


def window(query: Query, now: datetime) -> tuple[str, datetime | None]:
    """The window as it was written, and the time it begins; None for all time."""
    text = query.get("window", "") or "all"
    if text not in _WINDOWS:
        raise refuse("window must be 24h, 7d, 30d or all")
    length = _WINDOWS[text]
    return text, None if length is None else now - length


def earnings_filter(query: Query) -> EarningsFilter:
    """The filter of an earnings history."""
    start, end = _time(query, "from"), _time(query, "to")
    if start is not None and end is not None and start > end:
        raise refuse("from must not be after to")
    return EarningsFilter(
        start=start,
        end=end,
        model=query.get("model") or None,
        provider_key=query.get("provider_key") or None,
    )


def _number(text: str) -> int | None:
    return int(text) if _DIGITS.fullmatch(text) else None


def _time(query: Query, name: str) -> datetime | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        # In a query a bare "+" is a space, also in "+02:00".
        instant = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise refuse(f"{name} must be an RFC 3339 time with its zone, like 2026-05-01T00:00:00Z")
    return instant
