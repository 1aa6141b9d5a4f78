"""Requests whose model is on its way into memory wait for it, as long as is reasonable."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import pytest

from darkbloom_provider.engine import loading
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    LoadFailedError,
    ModelNotLoadedError,
    OverloadedError,
)
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from darkbloom_provider.errors import ModelError

MODEL, OTHER = "tiny", "other"
WAIT = 30
MB = 10**6


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowDisk:
    """Every load waits in the middle, while others go on, until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        real = loading.load_steps

        def slow(path: Path, step_bytes: int) -> Generator[None, None, loading.Weights]:
            self.reached.set()
            while not self.open.wait(0.001):
                yield
            return (yield from real(path, step_bytes))

        monkeypatch.setattr(loading, "load_steps", slow)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(clock: Clock) -> AsyncIterator[Engine]:
    settings = EngineSettings(max_running=2, max_waiting=2, load_wait_s=100)
    async with Engine(settings, clock=clock) as engine:
        yield engine


def ask(model: str = MODEL, max_tokens: int = 10) -> GenerationRequest:
    return GenerationRequest("r", model, prompt="hello", max_tokens=max_tokens)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


async def _begun(engine: Engine, model: str, path: Path) -> asyncio.Task[object]:
    """A load that has been asked for."""
    load: asyncio.Task[object] = asyncio.create_task(engine.load(model, path))
    await asyncio.sleep(0)
    return load


async def test_a_request_waits_for_the_load_of_its_model_behind_another(
    engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    loads = [await _begun(engine, model, tiny_model) for model in (OTHER, MODEL)]
    parked = [engine.submit(ask(model)) for model in (MODEL, OTHER, MODEL)]
    assert [generation.prompt_tokens for generation in parked] == [None, None, None]
    disk.open.set()
    first, *others = [await text_of(generation) for generation in parked]
    assert first
    assert others == [first, first]
    for load in loads:
        await load


async def test_what_is_parked_counts_against_the_queue(
    engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    load = await _begun(engine, MODEL, tiny_model)
    parked = [engine.submit(ask()) for _ in range(4)]
    with pytest.raises(OverloadedError):
        engine.submit(ask())
    disk.open.set()
    assert len({await text_of(generation) for generation in parked}) == 1
    await load


async def test_a_load_that_fails_fails_what_waits_for_it_with_its_own_reason(
    engine: Engine, tmp_path: Path
) -> None:
    load = await _begun(engine, MODEL, tmp_path / "secret-place")
    parked = engine.submit(ask())
    with pytest.raises(ModelError) as reason:
        await load
    with pytest.raises(LoadFailedError) as caught:
        await text_of(parked)
    assert caught.value.__cause__ is reason.value
    assert caught.value.status_code == 503
    assert "config.json" in (caught.value.why or "")
    assert "secret-place" not in caught.value.message
    await parked.released()
    with pytest.raises(ModelNotLoadedError):
        engine.submit(ask())


async def test_no_request_waits_for_a_load_longer_than_its_time(
    engine: Engine, tiny_model: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    load = await _begun(engine, MODEL, tiny_model)
    parked = engine.submit(ask())
    clock.now += 60
    late = engine.submit(ask())
    clock.now += 41
    engine._watch.look()
    with pytest.raises(ModelNotLoadedError) as caught:
        await text_of(parked)
    assert (caught.value.status_code, caught.value.why) == (503, "its load takes longer than 100 s")
    disk.open.set()
    assert await text_of(late)
    await load


async def test_a_parked_request_can_be_cancelled_and_leaves_at_once(
    engine: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    load = await _begun(engine, MODEL, tiny_model)
    cancelled, survivor = engine.submit(ask()), engine.submit(ask())
    cancelled.cancel()
    await cancelled.released()
    disk.open.set()
    assert await text_of(cancelled) == ""
    assert await text_of(survivor)
    assert engine.snapshot().tokens_generated == 10
    await load


async def test_closing_fails_what_is_parked(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowDisk(monkeypatch)
    async with Engine() as engine:
        load = await _begun(engine, MODEL, tiny_model)
        parked = engine.submit(ask())
    with pytest.raises(EngineClosedError):
        await text_of(parked)
    with pytest.raises(EngineClosedError):
        await load


# ---------------------------------------------------------------- when one makes room for another


async def _room_for_one(tiny_model: Path) -> AsyncIterator[Engine]:
    mx.synchronize()
    mx.clear_cache()
    base = mx.get_active_memory()
    async with Engine(EngineSettings(memory_ceiling_gb=(base + 500 * MB) / 1e9)) as engine:
        weights = (await engine.load(MODEL, tiny_model)).weight_bytes
    ceiling = base + weights + 3 * MB
    settings = EngineSettings(
        prefill_step_idle=64, prefill_step_busy=32, memory_ceiling_gb=ceiling / 1e9
    )
    async with Engine(settings) as engine:
        await engine.load(MODEL, tiny_model)
        yield engine


@pytest.fixture
async def crowded(tiny_model: Path) -> AsyncIterator[Engine]:
    """An engine whose memory holds one model; `MODEL` is in it."""
    async for engine in _room_for_one(tiny_model):
        yield engine


async def test_a_model_that_made_room_comes_back_for_who_asks_for_it(
    crowded: Engine, tiny_model: Path
) -> None:
    expected = await text_of(crowded.submit(ask()))
    await crowded.load(OTHER, tiny_model)
    assert crowded.loaded(MODEL) is None
    assert await text_of(crowded.submit(ask())) == expected
    assert crowded.loaded(OTHER) is None
    assert crowded.loaded(MODEL) is not None


async def test_a_request_on_its_way_while_its_model_makes_room_is_served_nevertheless(
    crowded: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await text_of(crowded.submit(ask()))
    disk = SlowDisk(monkeypatch)
    load = await _begun(crowded, OTHER, tiny_model)
    # The loop stands still: the thread has given the model up, and nobody here has heard of it.
    assert disk.reached.wait(WAIT)
    assert crowded.loaded(MODEL) is not None
    generation = crowded.submit(ask())
    disk.open.set()
    await load
    assert await text_of(generation) == expected
    assert crowded.loaded(OTHER) is None


async def test_a_model_whose_request_is_being_prepared_does_not_make_room(
    crowded: Engine, tiny_model: Path
) -> None:
    generation = crowded.submit(ask())
    with pytest.raises(ModelError, match="does not fit into memory now"):
        await crowded.load(OTHER, tiny_model)
    assert await text_of(generation)


async def test_a_model_that_was_unloaded_on_purpose_is_not_loaded_again(
    engine: Engine, tiny_model: Path
) -> None:
    await engine.load(MODEL, tiny_model)
    await engine.unload(MODEL)
    with pytest.raises(ModelNotLoadedError) as caught:
        engine.submit(ask())
    assert caught.value.status_code == 503
