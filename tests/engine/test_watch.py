"""An engine whose thread hangs or whose model fails: who is told what, and how it comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine.batch import Batch
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import GenerationFailedError, OutOfServiceError
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from darkbloom_provider.engine.watch import Hang, Pulse, overdue

MODEL, OTHER = "tiny", "other"
LIMIT = 60.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Stands before every step of a model while it is closed."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def before(self, step: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        def gated(batch: Batch) -> Any:
            if not self.open.is_set():
                self.reached.set()
                self.open.wait(30)
            return step(batch)

        return gated


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(tiny_model: Path, clock: Clock) -> AsyncIterator[Engine]:
    async with Engine(EngineSettings(stall_limit_s=LIMIT), clock=clock) as engine:
        await engine.load(MODEL, tiny_model)
        yield engine


def ask(model: str = MODEL, max_tokens: int = 20) -> GenerationRequest:
    return GenerationRequest("r", model, prompt="hello", max_tokens=max_tokens)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


async def served_again(engine: Engine, clock: Clock) -> str:
    """The text of a request as soon as one is taken; time passes meanwhile."""
    while True:
        try:
            return await text_of(engine.submit(ask()))
        except OutOfServiceError:
            clock.now += 0.001
            await asyncio.sleep(0)


def test_only_work_without_progress_is_overdue() -> None:
    assert overdue(Pulse(), 1e9, LIMIT) is None
    assert overdue(Pulse("m", 100.0), 100.0 + LIMIT, LIMIT) is None
    assert overdue(Pulse("m", 100.0), 161.0, LIMIT) == Hang("m", 61.0)


async def test_a_step_that_hangs_fails_its_requests_and_says_so_and_is_got_over(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await text_of(engine.submit(ask()))
    gate = Gate()
    monkeypatch.setattr(Batch, "step", gate.before(Batch.step))
    stuck = engine.submit(ask())
    await asyncio.to_thread(gate.reached.wait, 30)
    engine._watch.look()
    assert engine.snapshot().problem is None

    clock.now += LIMIT + 1
    engine._watch.look()
    with pytest.raises(OutOfServiceError) as caught:
        await text_of(stuck)
    assert caught.value.status_code == 503
    assert caught.value.why == "tiny has computed nothing for 61 s"
    await stuck.released()
    with pytest.raises(OutOfServiceError):
        engine.submit(ask())
    with pytest.raises(OutOfServiceError):
        await engine.load(OTHER, Path("anywhere"))
    with pytest.raises(OutOfServiceError):
        await engine.unload(MODEL)
    snapshot = engine.snapshot()
    slot = snapshot.slot(MODEL)
    assert slot is not None
    assert (slot.state, slot.running, slot.waiting) == ("crashed", 0, 0)
    assert snapshot.problem == slot.problem == caught.value.why

    # The thread comes back: the model is left alone for a second, probed, and serves again.
    monkeypatch.undo()
    gate.open.set()
    began = clock.now
    assert await served_again(engine, clock) == expected
    assert clock.now >= began + 1
    assert engine.snapshot().problem is None


async def test_an_engine_that_hangs_can_be_closed(
    tiny_model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    async with Engine(EngineSettings(stall_limit_s=LIMIT), clock=clock) as engine:
        await engine.load(MODEL, tiny_model)
        monkeypatch.setattr(Batch, "step", gate.before(Batch.step))
        stuck = engine.submit(ask())
        await asyncio.to_thread(gate.reached.wait, 30)
        clock.now += LIMIT + 1
        closing = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0)
        engine._watch.look()
        await closing
        await engine.aclose()
    with pytest.raises(OutOfServiceError):
        await text_of(stuck)
    gate.open.set()
    thread = engine._thread
    assert thread is not None
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()


async def test_a_model_that_fails_again_and_again_is_taken_out_while_others_serve(
    engine: Engine, tiny_model: Path, clock: Clock
) -> None:
    await engine.load(OTHER, tiny_model)
    expected = await text_of(engine.submit(ask()))
    batch = engine._worker._library.batches[MODEL]
    model = batch._weights.model
    failing = threading.Event()
    failing.set()

    def sometimes(*arguments: Any, **options: Any) -> Any:
        if failing.is_set():
            raise RuntimeError("[metal] secret words")
        return model(*arguments, **options)

    class Sometimes:
        __call__ = staticmethod(sometimes)

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    object.__setattr__(batch._weights, "model", Sometimes())
    batch.reset(None)
    for _ in range(3):
        with pytest.raises(GenerationFailedError):
            await text_of(engine.submit(ask()))
    with pytest.raises(OutOfServiceError) as caught:
        await text_of(engine.submit(ask()))
    assert caught.value.why == "its steps fail (RuntimeError)"
    snapshot = engine.snapshot()
    slot = snapshot.slot(MODEL)
    assert slot is not None
    assert (slot.state, slot.problem) == ("crashed", caught.value.why)
    assert snapshot.problem == f"{MODEL}: {caught.value.why}"
    assert await text_of(engine.submit(ask(OTHER))) == expected

    # A probe that fails changes nothing; the one after it finds the model well.
    clock.now += 1
    await text_of(engine.submit(ask(OTHER)))
    assert engine.snapshot().problem is not None
    failing.clear()
    clock.now += 2
    await text_of(engine.submit(ask(OTHER)))
    assert await served_again(engine, clock) == expected
    assert engine.snapshot().problem is None
