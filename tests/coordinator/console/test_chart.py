"""The graph as numbers: which spans there are, and where each bar stands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.console.views.chart import (
    FLOOR,
    HEIGHT,
    MAX_BARS,
    chart,
    round_up,
    spans,
)
from darkbloom_provider.coordinator.earnings.views import SeriesPoint

MAY = datetime(2026, 5, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def point(start: datetime, amount: int = 10) -> SeriesPoint:
    return SeriesPoint(start, amount, 1, 2, 3)


def test_days_without_jobs_are_there_as_zero() -> None:
    found = spans([point(MAY), point(MAY + 2 * DAY)], start=MAY, end=MAY + 3 * DAY, bucket="day")
    assert [(span.start.day, span.amount, span.jobs) for span in found] == [
        (1, 10, 1),
        (2, 0, 0),
        (3, 10, 1),
    ]


def test_the_day_or_hour_that_has_begun_is_the_last() -> None:
    days = spans([], start=MAY, end=MAY + DAY + HOUR, bucket="day")
    hours = spans([], start=MAY, end=MAY + HOUR + timedelta(seconds=1), bucket="hour")
    assert [span.start for span in days] == [MAY, MAY + DAY]
    assert [span.start for span in hours] == [MAY, MAY + HOUR]


def test_points_outside_the_time_shown_are_left_out() -> None:
    found = spans(
        [point(MAY - DAY), point(MAY), point(MAY + DAY)], start=MAY, end=MAY + DAY, bucket="day"
    )
    assert [span.amount for span in found] == [10]


@given(
    days=st.integers(1, 4000),
    amounts=st.dictionaries(st.integers(0, 3999), st.integers(1, 10**9), max_size=30),
)
def test_however_long_the_time_nothing_is_lost_and_the_bars_are_few(
    days: int, amounts: dict[int, int]
) -> None:
    inside = {day: amount for day, amount in amounts.items() if day < days}
    points = [point(MAY + day * DAY, amount) for day, amount in inside.items()]
    found = spans(points, start=MAY, end=MAY + days * DAY, bucket="day")
    assert len(found) <= MAX_BARS
    assert sum(span.amount for span in found) == sum(inside.values())
    assert sum(span.tokens for span in found) == 5 * len(inside)


def test_bars_stand_on_the_ground_and_their_heights_are_in_proportion() -> None:
    drawn = chart([0, 50, 100], ["a", "b", "c"], ["a", "b", "c"], written=str)
    assert drawn.highest == "100"
    assert drawn.middle == "50"
    assert [bar.height for bar in drawn.bars] == [0, HEIGHT / 2, HEIGHT]
    assert all(bar.y + bar.height == HEIGHT for bar in drawn.bars)
    assert drawn.bars[-1].x + drawn.bars[-1].width <= drawn.width
    assert drawn.labels == ("a", "b", "c")


def test_the_smallest_amount_can_be_seen_and_nothing_cannot() -> None:
    drawn = chart([1, 0, 10**9], ["", "", ""], ["", "", ""], written=str)
    assert [bar.height for bar in drawn.bars] == [FLOOR, 0, HEIGHT]


def test_where_nothing_was_earned_there_is_no_scale() -> None:
    drawn = chart([0, 0], ["", ""], ["x", "y"], written=str)
    assert (drawn.highest, drawn.middle) == ("", "")
    assert {bar.height for bar in drawn.bars} == {0}


@pytest.mark.parametrize("value", [0, 1, 7, 99, 100, 101, 2**63 - 1])
def test_the_scale_holds_the_highest_value_and_halves_exactly(value: int) -> None:
    assert round_up(value) >= value
    assert round_up(value) % 2 == 0
    assert round_up(value) <= max(2, 2 * value)
