from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.engine.breaker import Breaker


def test_single_failures_do_not_take_a_model_out_of_service() -> None:
    breaker = Breaker(tolerated=2)
    for now in range(50):
        breaker.failed(now, "x")
        breaker.completed()
    breaker.failed(50, "x")
    breaker.failed(50, "x")
    assert not breaker.open


def test_failures_in_a_row_do_and_the_reason_is_kept() -> None:
    breaker = Breaker(tolerated=2)
    for _ in range(3):
        breaker.failed(10.0, "steps fail")
    assert breaker.problem == "steps fail"
    assert breaker.probe_in(10.0) == 1.0
    assert breaker.probe_in(12.0) == 0.0


def test_each_failed_probe_doubles_the_wait_up_to_a_bound() -> None:
    breaker = Breaker(tolerated=0, first_s=1, longest_s=10)
    waits = []
    for _ in range(6):
        breaker.failed(0.0, "x")
        waits.append(breaker.probe_in(0.0))
    assert waits == [1, 2, 4, 8, 10, 10]


def test_after_a_probe_one_failure_is_enough_and_a_completion_forgets_everything() -> None:
    breaker = Breaker(tolerated=2)
    breaker.trip(0.0, "hung")
    breaker.probed()
    assert breaker.probe_in(0.0) is None
    breaker.failed(5.0, "x")
    assert breaker.probe_in(5.0) == 2.0
    breaker.probed()
    breaker.completed()
    breaker.failed(6.0, "x")
    assert not breaker.open


@given(st.lists(st.sampled_from(["failed", "trip", "probed", "completed"])), st.floats(0, 1e9))
def test_a_model_is_always_tried_again_within_the_bound(events: list[str], now: float) -> None:
    breaker = Breaker(longest_s=60)
    for event in events:
        if event in {"failed", "trip"}:
            getattr(breaker, event)(now, "x")
        else:
            getattr(breaker, event)()
        wait = breaker.probe_in(now)
        assert (wait is None) is (breaker.problem is None)
        assert wait is None or 0 < wait <= 60.001
