"""The link's clock."""

from __future__ import annotations

import time

import pytest

from darkbloom_provider.link.clock import waking_clock


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux has both clocks")
def test_the_clock_never_lags_behind_the_one_that_stops_during_sleep() -> None:
    before = time.monotonic()
    assert waking_clock() >= before


def test_the_clock_is_not_set_back() -> None:
    readings = [waking_clock() for _ in range(100)]
    assert readings == sorted(readings)
