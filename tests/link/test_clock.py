"""The link's clock."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.link.clock import to_the_beat, waking_clock


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux has both clocks")
def test_the_clock_never_lags_behind_the_one_that_stops_during_sleep() -> None:
    before = time.monotonic()
    assert waking_clock() >= before


def test_the_clock_is_not_set_back() -> None:
    readings = [waking_clock() for _ in range(100)]
    assert readings == sorted(readings)


@given(st.sampled_from([0.1, 0.5, 1.0, 5.0]), st.floats(0, 1e9))
def test_whoever_sleeps_to_the_beat_wakes_with_the_others(period_s: float, now_s: float) -> None:
    wait_s = to_the_beat(period_s, now_s)
    assert 0 < wait_s <= period_s
    beats = (now_s + wait_s) / period_s
    assert beats == pytest.approx(round(beats), abs=1e-3)
