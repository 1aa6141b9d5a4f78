"""A time limit that holds for every wait, with one timer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from darkbloom_provider.coordinator.providers.patience import Patience


@dataclass
class Timer:
    at: float
    callback: Callable[[], object]
    cancelled: bool = False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Loop:
    """The two things that are asked of an event loop."""

    now: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: Callable[..., object], *given: object) -> Timer:
        self.timers.append(Timer(at, lambda: callback(*given)))
        return self.timers[-1]

    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.cancelled]

    def pass_to(self, now: float) -> None:
        self.now = now
        for timer in self.waiting():
            if timer.at <= now:
                timer.cancelled = True
                timer.callback()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def waiting_at(loop: Loop, waiting: Patience, moment: float) -> bool:
    """Whether a wait is over by then."""
    loop.pass_to(moment)
    return waiting.over


def test_a_wait_that_lasts_too_long_is_ended_once(loop: Loop) -> None:
    lost: list[float] = []
    waits = Patience(lambda: lost.append(loop.now))
    with waits.of(5) as waiting:
        seen = [waiting_at(loop, waiting, moment) for moment in (4.9, 5, 100)]
    assert seen == [False, True, True]
    assert lost == [5]
    assert loop.waiting() == []


def test_each_wait_has_its_whole_time(loop: Loop) -> None:
    lost: list[float] = []
    waits = Patience(lambda: lost.append(loop.now))
    for start in range(0, 40, 4):
        loop.pass_to(start)
        with waits.of(5) as waiting:
            loop.pass_to(start + 3.9)
            assert not waiting.over
    with waits.of(5) as waiting:
        seen = [waiting_at(loop, waiting, moment) for moment in (44.8, 44.9)]
    assert seen == [False, True]
    assert lost == [44.9]


def test_a_shorter_wait_does_not_wait_for_the_timer_of_a_longer_one(loop: Loop) -> None:
    lost: list[float] = []
    waits = Patience(lambda: lost.append(loop.now))
    with waits.of(100):
        pass
    with waits.of(1) as waiting:
        loop.pass_to(1)
        assert waiting.over


def test_many_waits_share_a_timer_and_none_is_left_behind(loop: Loop) -> None:
    waits = Patience(lambda: None)
    for _ in range(50):
        with waits.of(5):
            pass
    assert len(loop.timers) == 1
    waits.stop()
    waits.stop()
    assert loop.waiting() == []
