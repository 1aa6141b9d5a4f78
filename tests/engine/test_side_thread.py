"""Calls in a thread of their own: in order, cancelled before they begin, told in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Any

import pytest

from darkbloom_provider.engine import side_thread
from darkbloom_provider.engine.side_thread import InterruptedCallError, SideThread

WAIT = 30


class Now:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Gate:
    """A call that takes until it is told."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.open.wait(WAIT)
        return "through"


@pytest.fixture
async def thread() -> AsyncIterator[SideThread]:
    one = SideThread("side", Now())
    yield one
    await one.aclose()


class Told:
    """What came back, in order."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self.threads: set[threading.Thread] = set()
        self._more = asyncio.Event()

    def __call__(self, call: Future[Any]) -> None:
        self.threads.add(threading.current_thread())
        error = call.exception()
        self.outcomes.append(call.result() if error is None else type(error))
        self._more.set()

    async def count(self, number: int) -> list[Any]:
        while len(self.outcomes) < number:
            self._more.clear()
            await asyncio.wait_for(self._more.wait(), WAIT)
        return self.outcomes


async def test_calls_run_in_order_and_are_told_in_the_loops_thread(thread: SideThread) -> None:
    told, ran = Told(), set()

    def work(number: int) -> int:
        ran.add(threading.current_thread())
        return 100 // number

    for number in (1, 2, 0, 4):
        thread.start(lambda number=number: work(number), told)  # type: ignore[misc] # bound early
    assert await told.count(4) == [100, 50, ZeroDivisionError, 25]
    assert told.threads == {threading.current_thread()}
    [one] = ran
    assert (one.name, one.daemon) == ("side", True)


async def test_a_call_that_has_not_begun_can_be_cancelled_and_never_begins(
    thread: SideThread,
) -> None:
    told, gate = Told(), Gate()
    first = thread.start(gate, told)
    second = thread.start(lambda: "second", told)
    thread.start(lambda: "third", told)
    await asyncio.to_thread(gate.begun.wait, WAIT)
    assert second.cancel()
    assert not first.cancel()
    gate.open.set()
    assert await told.count(2) == ["through", "third"]


async def test_it_says_since_when_a_call_is_under_way() -> None:
    now, gate, told = Now(), Gate(), Told()
    thread = SideThread("side", now)
    seen = [thread.busy_since]
    thread.start(gate, told)
    await asyncio.to_thread(gate.begun.wait, WAIT)
    now.seconds += 5
    seen.append(thread.busy_since)
    gate.open.set()
    await told.count(1)
    seen.append(thread.busy_since)
    assert seen == [None, 100.0, None]
    await thread.aclose()


async def test_closing_begins_nothing_and_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(side_thread, "CLOSE_SECONDS", 0)
    told, gate = Told(), Gate()
    thread = SideThread("side")
    thread.start(gate, told)
    second = thread.start(lambda: "second", told)
    await asyncio.to_thread(gate.begun.wait, WAIT)
    await thread.aclose()
    assert second.cancelled()
    alive = [thread.alive]
    gate.open.set()
    monkeypatch.undo()
    await thread.aclose()
    await thread.aclose()
    assert [*alive, thread.alive] == [True, False]
    assert "second" not in told.outcomes


async def test_a_call_that_never_ends_by_itself_is_interrupted_and_the_next_has_its_turn(
    thread: SideThread,
) -> None:
    told, begun = Told(), threading.Event()

    def endless() -> None:
        while True:
            begun.set()
            with contextlib.suppress(Exception):
                sum(range(100))

    thread.start(endless, told)
    thread.start(lambda: "next", told)
    await asyncio.to_thread(begun.wait, WAIT)
    thread.interrupt()
    thread.interrupt()
    assert await told.count(2) == [InterruptedCallError, "next"]


async def test_an_interruption_that_comes_too_late_hits_nothing(thread: SideThread) -> None:
    told, gate = Told(), Gate()
    thread.interrupt()
    thread.start(gate, told)
    await asyncio.to_thread(gate.begun.wait, WAIT)
    thread.interrupt()  # while it waits for a lock: it is heard when that returns
    gate.open.set()
    await told.count(1)
    thread.interrupt()
    thread.start(lambda: "next", told)
    assert await told.count(2) == [InterruptedCallError, "next"]


async def test_interrupted_at_any_moment_every_call_has_one_outcome(thread: SideThread) -> None:
    told, over = Told(), threading.Event()

    def interrupting() -> None:
        while not over.is_set():
            thread.interrupt()

    interrupter = threading.Thread(target=interrupting)
    interrupter.start()
    for number in range(300):
        thread.start(lambda number=number: sum(range(number)) and number, told)  # type: ignore[misc] # bound early
    outcomes = await told.count(300)
    over.set()
    interrupter.join()
    assert all(
        outcome is InterruptedCallError or outcome == (number if number > 1 else 0)
        for number, outcome in enumerate(outcomes)
    )
    assert thread.alive


def test_a_loop_that_is_closed_is_not_told() -> None:
    gate = Gate()
    thread = SideThread("side")

    async def begin() -> None:
        thread.start(gate, lambda _call: pytest.fail("told"))
        await asyncio.to_thread(gate.begun.wait, WAIT)

    asyncio.run(begin())
    gate.open.set()
    asyncio.run(thread.aclose())
    assert not thread.alive
