"""The reader's end by itself: when the engine is asked to wait, and when to go on."""

from __future__ import annotations

import pytest

from darkbloom_provider.engine.generation import FAR_BEHIND, Generation
from darkbloom_provider.engine.requests import Usage
from darkbloom_provider.engine.updates import Finished, Progress


class Held:
    """A completion, and what was asked of the engine for it."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.cancels = 0
        self.generation = Generation("r", self._cancel, self.asked.append)
        self.tokens = 0

    def _cancel(self) -> None:
        self.cancels += 1

    def make(self, count: int, text: str = "x") -> None:
        for _ in range(count):
            self.tokens += 1
            self.generation.apply(Progress(0, text, self.tokens))


@pytest.fixture
def held() -> Held:
    return Held()


async def test_a_reader_that_keeps_up_never_makes_the_engine_wait(held: Held) -> None:
    for _ in range(10):
        held.make(FAR_BEHIND)
        await anext(held.generation)
    assert held.asked == []


async def test_far_behind_the_engine_waits_once_and_goes_on_with_the_next_read(held: Held) -> None:
    held.make(FAR_BEHIND + 1)
    assert held.asked == [True]
    held.make(5)  # which were on their way
    delta = await anext(held.generation)
    assert (len(delta.text), delta.completion_tokens) == (FAR_BEHIND + 6,) * 2
    assert held.asked == [True, False]
    held.make(FAR_BEHIND)
    assert held.asked == [True, False]
    held.make(1)
    assert held.asked == [True, False, True]


async def test_tokens_without_text_make_nobody_wait_for_a_reader_who_waits(held: Held) -> None:
    held.make(3 * FAR_BEHIND, text="")
    assert held.asked == []
    held.make(1)
    assert held.asked == []
    held.make(FAR_BEHIND, text="")
    assert held.asked == [True]
    await anext(held.generation)
    assert held.asked == [True, False]


async def test_what_was_cancelled_or_is_whole_does_not_go_on(held: Held) -> None:
    held.make(FAR_BEHIND + 1)
    held.generation.apply(Finished(0, "length", Usage(1, held.tokens)))
    await anext(held.generation)
    assert held.asked == [True]

    other = Held()
    other.make(FAR_BEHIND + 1)
    other.generation.cancel()
    assert [delta async for delta in other.generation] == []
    assert (other.asked, other.cancels) == ([True], 1)
