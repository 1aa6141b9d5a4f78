"""Who is next: first come, first served, and who may go before whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine.admission import Limits, Load, worst
from darkbloom_provider.engine.entry import Entry
from darkbloom_provider.engine.errors import EngineError, InsufficientMemoryError
from darkbloom_provider.engine.ledger import Ledger
from darkbloom_provider.engine.line import Line
from darkbloom_provider.engine.loading import load_steps
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import EngineSettings
from darkbloom_provider.engine.sharing import MIN_SHARED, Sharing, Start
from darkbloom_provider.models.memory import Footprint, LayerShape
from support.batch_run import Run, ask, weights_of

FOOTPRINT = Footprint(0, (LayerShape(10),), 1, 0, fused=True, vocabulary=1)
LIMITS = Limits(piece_tokens=64, row_piece_tokens=0)


class Queue:
    """A line with memory for `rows` requests of a hundred tokens."""

    def __init__(self, rows: int = 100, *, cache: int = 0) -> None:
        self.memory = Ledger(PromptCache(0), lambda: self.held)
        self.held = 0
        self.memory.load("m", FOOTPRINT, make_room=False)
        room = worst({"m": Load(FOOTPRINT, (100,) * rows)}, LIMITS)
        self.memory.limits = Limits(room, piece_tokens=64, row_piece_tokens=0)
        self.sharing = Sharing(PromptCache(cache), trimmable=True)
        self.line = Line(self.memory.of("m"), self.sharing)

    def add(self, key: int, prompt: int = 90, limit: int = 10, first: int = 0) -> None:
        output: Any = None
        tokens = [*range(first, first + prompt)]
        self.line.add(Entry(key, ask(), tokens, limit, output))

    def start(
        self, fits: Callable[[int, bool], bool] = lambda _tokens, _overtaking: True
    ) -> list[tuple[int, Start | EngineError]]:
        startable = self.line.startable(fits, lambda _key: None)
        return [(entry.key, start) for entry, start in startable]

    def keys(self, fits: Callable[[int, bool], bool] = lambda _t, _o: True) -> list[int]:
        return [key for key, _ in self.start(fits)]


def test_those_who_came_first_go_first() -> None:
    queue = Queue()
    for key in range(3):
        queue.add(key)
    assert (len(queue.line), queue.line.prompt_tokens) == (3, 270)
    assert queue.keys() == [0, 1, 2]
    assert (len(queue.line), queue.line.prompt_tokens) == (0, 0)


def test_nobody_overtakes_a_request_that_waits_for_memory() -> None:
    queue = Queue(rows=3)
    queue.add(0)
    assert queue.keys() == [0]
    queue.add(1, prompt=290)
    queue.add(2, prompt=1, limit=1)
    assert queue.keys() == []
    # The last would have had room beside the first.
    assert queue.memory.enter("m", 2, 2)
    queue.memory.leave("m", 2)
    queue.memory.leave("m", 0)
    assert queue.keys() == [1]
    queue.memory.leave("m", 1)
    assert queue.keys() == [2]


def test_a_request_that_waiting_does_not_help_is_refused_and_blocks_nobody() -> None:
    queue = Queue(rows=2)
    queue.add(0, prompt=150, limit=50)
    queue.add(1)
    queue.held = 6500  # by something else: enough is left for the second only
    (first, refusal), (second, start) = queue.start()
    assert (first, second) == (0, 1)
    assert isinstance(refusal, InsufficientMemoryError)
    assert isinstance(start, Start)
    assert len(queue.line) == 0


def test_one_whose_beginning_another_computes_lets_others_pass_and_is_promised_no_memory() -> None:
    queue = Queue(rows=2, cache=10**6)
    queue.add(0)
    queue.add(1)
    queue.add(2, first=1000)
    assert MIN_SHARED < 90
    assert queue.keys() == [0, 2]
    queue.sharing.left(0)
    queue.memory.leave("m", 0)
    assert queue.keys() == [1]


def test_one_that_does_not_fit_lets_only_those_pass_who_fit_all_the_same() -> None:
    queue = Queue()
    for key, prompt in enumerate((90, 20, 90, 20)):
        queue.add(key, prompt)
    asked: list[tuple[int, bool]] = []

    def fits(tokens: int, overtaking: bool) -> bool:
        asked.append((tokens, overtaking))
        return tokens < 50

    assert queue.keys(fits) == [1, 3]
    assert [each for each in asked if each[0] > 1] == [
        (90, False),
        (20, True),
        (90, True),
        (20, True),
    ]
    assert len(queue.line) == 2


def test_who_leaves_the_line_is_not_started() -> None:
    queue = Queue()
    for key in range(3):
        queue.add(key)
    assert queue.line.remove(1)
    assert not queue.line.remove(1)
    assert queue.keys() == [0, 2]
    queue.add(3)
    assert [entry.key for entry in queue.line.clear()] == [3]
    assert queue.keys() == []


@pytest.mark.parametrize("every", [3, 4, 5, 6])
def test_a_long_prompt_begins_however_many_shorter_ones_keep_coming(
    tiny_model: Path, every: int
) -> None:
    weights = weights_of(load_steps(tiny_model, step_bytes=10**9))
    run = Run(weights, EngineSettings(prefill_step_busy=64, prefill_step_idle=64))
    run.add(0, ask("a", 400))
    run.step(3)
    run.add(1, ask("the stone and the river " * 18, 2))
    run.step()
    run.add(2, ask("give light " * 300, 2))
    for step in range(60):
        if step % every == 0:
            run.add(3 + step, ask(f"{step} " + "the stone and the river " * 18, 2))
        run.step()
    assert run.outcomes[2].counts or 2 in run.batch._running
