"""Bars over time: where each one stands, how high it is, and what is written beside them.

The drawing is stretched to any width by the browser, so it holds no text: the labels stand beside
it as text of the page, which a phone shows as large as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from darkbloom_provider.coordinator.earnings.views import Bucket, SeriesPoint

MAX_BARS: Final = 92
STEP: Final = 10.0
"""Width of one bar's place, in units of the drawing."""
HEIGHT: Final = 100.0
GAP: Final = 2.0
FLOOR: Final = 1.5
"""A bar of anything above nothing is at least so high, to be seen."""

WIDTHS: Final[dict[Bucket, timedelta]] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


@dataclass(frozen=True, slots=True)
class Span:
    """What happened from `start` until the next one."""

    start: datetime
    amount: int
    """Micro-USD."""
    jobs: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Both kinds."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle that stands on the ground line, and what it means."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars and their labels."""

    width: float
    bars: tuple[Bar, ...]
    highest: str
    """What the top of the drawing stands for."""
    middle: str
    labels: tuple[str, ...]
    """Below: first, middle and last."""


def spans(
    points: Sequence[SeriesPoint], *, start: datetime, end: datetime, bucket: Bucket
) -> list[Span]:
    """Every hour or day from `start` to `end`, those without jobs as zero.

    When they are more than `MAX_BARS`, as many of them as necessary are taken together.

    Args:
        points: What there was, in any order; points outside are left out.
        start: The beginning; it is moved back to the beginning of its hour or day.
        end: The end; the span that it falls into is the last.
        bucket: How wide the points are.
    """
    width = WIDTHS[bucket]
    first = floor(start, bucket)
    places = max(-((first - end) // width), 1)
    together = -(-places // MAX_BARS)
    found = [Span(first + i * together * width, 0, 0, 0, 0) for i in range(-(-places // together))]
    for point in points:
        index = (point.start - first) // (together * width)
        if 0 <= index < len(found):
            found[index] = _added(found[index], point)
    return found


def floor(instant: datetime, bucket: Bucket) -> datetime:
    """The beginning of the hour or day (of the same zone) that an instant falls into."""
    hour = instant.replace(minute=0, second=0, microsecond=0)
    return hour if bucket == "hour" else hour.replace(hour=0)


def _added(span: Span, point: SeriesPoint) -> Span:
    return Span(
        span.start,
        span.amount + point.amount_micro_usd,
        span.jobs + point.jobs,
        span.prompt_tokens + point.prompt_tokens,
        span.completion_tokens + point.completion_tokens,
    )


def chart(
    values: Sequence[int],
    titles: Sequence[str],
    labels: Sequence[str],
    *,
    written: Callable[[int], str],
) -> Chart:
    """The bars of some values, which are not negative.

    Args:
        values: One for each bar.
        titles: What each bar says when it is pointed at.
        labels: The name of each bar; only the first, middle and last are shown.
        written: How a value is written at the side.
    """
    highest = max(values, default=0)
    top = round_up(highest)
    bars = tuple(
        _bar(i, value, top, title)
        for i, (value, title) in enumerate(zip(values, titles, strict=True))
    )
    shown = (labels[0], labels[len(labels) // 2], labels[-1]) if labels else ()
    # Without anything to measure there is no scale.
    sides = (written(top), written(top // 2)) if highest else ("", "")
    return Chart(max(len(values), 1) * STEP, bars, *sides, shown)


def _bar(index: int, value: int, top: int, title: str) -> Bar:
    height = max(HEIGHT * value / top, FLOOR) if value else 0.0
    return Bar(
        x=index * STEP + GAP / 2,
        y=round(HEIGHT - height, 2),
        width=STEP - GAP,
        height=round(height, 2),
        title=title,
    )


def round_up(value: int) -> int:
    """The next number that reads well and halves well: 2, 4, 6, 8 or 10 times a power of ten.

    >>> [round_up(n) for n in (0, 7, 21, 1001)]
    [2, 8, 40, 2000]
    """
    if value <= 0:
        return 2
    power = int("1" + "0" * (len(str(value - 1)) - 1))
    return next(step * power for step in (2, 4, 6, 8, 10) if step * power >= value)
