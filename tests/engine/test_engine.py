"""The front of the engine, with its thread and a real (tiny) model."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine.batch import Batch
from darkbloom_provider.engine.engine import Engine, runs_in_this_process
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    GenerationFailedError,
    InvalidGenerationError,
    ModelNotLoadedError,
    OverloadedError,
)
from darkbloom_provider.engine.generation import FAR_BEHIND, Generation
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest, Usage
from darkbloom_provider.engine.updates import RequestUpdate
from darkbloom_provider.engine.watch import overdue
from darkbloom_provider.engine.worker import Worker
from darkbloom_provider.errors import ModelError

MODEL = "tiny"


async def test_an_engine_is_in_this_process_while_its_thread_lives() -> None:
    assert not runs_in_this_process()
    async with Engine():
        assert runs_in_this_process()
    assert not runs_in_this_process()


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[Engine]:
    async with Engine() as engine:
        await engine.load(MODEL, tiny_model)
        yield engine


def ask(prompt: str = "hello", max_tokens: int = 30, **options: Any) -> GenerationRequest:
    return GenerationRequest("r", MODEL, prompt=prompt, max_tokens=max_tokens, **options)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


# ---------------------------------------------------------------- a completion


async def test_a_completion_comes_in_pieces_with_true_counts(engine: Engine) -> None:
    generation = engine.submit(ask(max_tokens=40))
    deltas = [delta async for delta in generation]
    assert all(delta.text for delta in deltas)
    counts = [delta.completion_tokens for delta in deltas]
    assert counts == sorted(set(counts))
    assert generation.finish_reason == "length"
    assert generation.prompt_tokens is not None
    assert generation.usage == Usage(generation.prompt_tokens, 40)


async def test_messages_are_rendered_by_the_models_template(engine: Engine) -> None:
    chat = GenerationRequest(
        "r", MODEL, messages=({"role": "user", "content": "hello"},), max_tokens=10
    )
    plain = ask("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", 10)
    one, two = engine.submit(chat), engine.submit(plain)
    assert await text_of(one) == await text_of(two)
    assert one.usage == two.usage


async def test_completions_at_once_equal_completions_one_after_the_other(engine: Engine) -> None:
    prompts = [f"hello {n}" for n in range(12)]
    together = await asyncio.gather(*(text_of(engine.submit(ask(prompt))) for prompt in prompts))
    apart = [await text_of(engine.submit(ask(prompt))) for prompt in prompts]
    assert together == apart


async def test_a_slow_reader_gets_all_text_in_one_piece(engine: Engine) -> None:
    expected = await text_of(engine.submit(ask(max_tokens=50)))
    generation = engine.submit(ask(max_tokens=50))
    await generation.released()
    [delta] = [delta async for delta in generation]
    assert (delta.text, delta.completion_tokens) == (expected, 50)
    assert generation.finish_reason == "length"


async def test_a_completion_stands_still_while_its_reader_is_far_behind(engine: Engine) -> None:
    expected = await text_of(engine.submit(ask(max_tokens=450)))
    behind, company = engine.submit(ask(max_tokens=450)), engine.submit(ask(max_tokens=450))
    assert await text_of(company) == expected
    at = behind.usage.completion_tokens
    # Its company made 450 meanwhile. A few tokens were on their way when it was held.
    assert FAR_BEHIND <= at < FAR_BEHIND + 100
    await text_of(engine.submit(ask(max_tokens=50)))
    assert behind.usage.completion_tokens == at
    assert await text_of(behind) == expected
    assert behind.usage.completion_tokens == 450


async def test_a_completion_that_stands_still_can_be_cancelled(engine: Engine) -> None:
    behind = engine.submit(ask(max_tokens=450))
    await text_of(engine.submit(ask(max_tokens=450)))
    behind.cancel()
    await behind.released()
    slot = engine.snapshot().slot(MODEL)
    assert slot is not None
    assert (slot.running, slot.waiting) == (0, 0)


async def test_a_newcomer_beside_one_that_stands_still_is_no_sign_of_a_hang(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = engine.submit(ask(max_tokens=450))
    while behind.usage.completion_tokens < FAR_BEHIND + 1:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.001)
    await text_of(engine.submit(ask(max_tokens=1)))
    late: list[object] = []
    step = Batch.step

    def watched(batch: Batch) -> list[RequestUpdate]:
        pulse = engine._worker.pulse
        late.extend([pulse] if overdue(pulse, time.monotonic(), 60) else [])
        return step(batch)

    monkeypatch.setattr(Batch, "step", watched)
    await text_of(engine.submit(ask(max_tokens=5)))
    assert late == []


# ---------------------------------------------------------------- cancelling


async def test_cancel_ends_the_text_at_once_and_frees_the_engine_within_two_steps(
    engine: Engine,
) -> None:
    generation = engine.submit(ask(max_tokens=900))
    await anext(generation)
    steps = engine.snapshot().steps
    generation.cancel()
    generation.cancel()
    assert [delta async for delta in generation] == []
    await generation.released()
    assert engine.snapshot().steps - steps <= 2
    assert generation.finish_reason is None
    assert 0 < generation.usage.completion_tokens < 900
    slot = engine.snapshot().slot(MODEL)
    assert slot is not None
    assert (slot.running, slot.waiting) == (0, 0)


async def test_cancel_before_the_engine_has_looked_is_heard(engine: Engine) -> None:
    generation = engine.submit(ask(max_tokens=900))
    generation.cancel()
    await generation.released()
    assert generation.usage.completion_tokens == 0


async def test_cancel_after_the_end_is_silent(engine: Engine) -> None:
    generation = engine.submit(ask(max_tokens=3))
    await text_of(generation)
    generation.cancel()
    assert generation.finish_reason == "length"


async def test_a_cancelled_reader_leaves_the_generation_usable(engine: Engine) -> None:
    generation = engine.submit(ask(max_tokens=20))
    reader = asyncio.create_task(text_of(generation))
    await asyncio.wait([reader], timeout=0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await text_of(generation)
    assert generation.finish_reason == "length"


# ---------------------------------------------------------------- refusals


async def test_an_unknown_model_is_404_and_one_not_in_memory_503(engine: Engine) -> None:
    with pytest.raises(ModelNotLoadedError) as unknown:
        engine.submit(GenerationRequest("r", "other", prompt="x"))
    assert unknown.value.status_code == 404
    await engine.unload(MODEL)
    with pytest.raises(ModelNotLoadedError) as unloaded:
        engine.submit(ask())
    assert unloaded.value.status_code == 503


async def test_nonsense_is_refused_before_anything_starts(engine: Engine) -> None:
    with pytest.raises(InvalidGenerationError):
        engine.submit(ask(max_tokens=0))


async def test_what_only_the_tokenizer_finds_out_is_raised_by_reading(engine: Engine) -> None:
    generation = engine.submit(ask("the " * 2000))
    with pytest.raises(InvalidGenerationError) as caught:
        await text_of(generation)
    assert caught.value.status_code == 413


async def test_a_full_queue_refuses_one_more_and_loses_none(tiny_model: Path) -> None:
    async with Engine(EngineSettings(max_running=1, max_waiting=2)) as engine:
        await engine.load(MODEL, tiny_model)
        accepted = [engine.submit(ask(max_tokens=10)) for _ in range(3)]
        slot = engine.snapshot().slot(MODEL)
        assert slot is not None
        assert slot.running + slot.waiting == 3
        with pytest.raises(OverloadedError) as caught:
            engine.submit(ask())
        assert caught.value.status_code == 503
        assert len({await text_of(generation) for generation in accepted}) == 1
        assert await text_of(engine.submit(ask(max_tokens=1)))


# ---------------------------------------------------------------- models


async def test_loading_tells_what_was_loaded_and_is_idempotent(
    engine: Engine, tiny_model: Path
) -> None:
    first, second = await asyncio.gather(
        engine.load("again", tiny_model), engine.load("again", tiny_model)
    )
    assert first is second
    assert first is await engine.load("again", tiny_model)
    weights = (tiny_model / "model.safetensors").stat().st_size
    assert weights * 0.9 < first.weight_bytes <= weights
    assert first.context_length == 1024
    assert first.chat_template is not None
    assert "<|im_start|>" in first.chat_template
    assert "<|im_start|>" in first.special_tokens


async def test_several_models_answer_side_by_side(engine: Engine, tiny_model: Path) -> None:
    stream = engine.submit(ask(max_tokens=200))
    await engine.load("other", tiny_model)
    other = engine.submit(GenerationRequest("r", "other", prompt="hello", max_tokens=200))
    assert await text_of(stream) == await text_of(other)
    assert {slot.model: slot.state for slot in engine.snapshot().slots} == {
        MODEL: "running",
        "other": "running",
    }


async def test_unloading_fails_what_runs_and_frees_the_memory(
    engine: Engine, tiny_model: Path
) -> None:
    generation = engine.submit(ask(max_tokens=900))
    await anext(generation)
    before = engine.snapshot().memory.active_gb
    await engine.unload(MODEL)
    await engine.unload(MODEL)
    with pytest.raises(ModelNotLoadedError):
        await text_of(generation)
    slot = engine.snapshot().slot(MODEL)
    assert slot is not None
    assert slot.state == "idle_shutdown"
    assert engine.snapshot().memory.active_gb < before
    await engine.load(MODEL, tiny_model)
    assert await text_of(engine.submit(ask()))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_kind(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"unheard_of"'))


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [_no_config, _bad_config, _unknown_kind, _cut, _no_tokenizer, _bad_tokenizer]
)
async def test_a_folder_that_cannot_be_loaded_is_a_typed_error_and_harms_nobody(
    engine: Engine, tiny_model: Path, tmp_path: Path, damage: Any
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    damage(broken)
    with pytest.raises(ModelError) as caught:
        await engine.load("broken", broken)
    assert caught.value.why
    slot = engine.snapshot().slot("broken")
    assert slot is not None
    assert slot.state == "crashed"
    assert await text_of(engine.submit(ask()))
    await engine.load("broken", tiny_model)


async def test_loading_never_asks_the_network(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*arguments: object, **_options: object) -> None:
        asked.append(arguments)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    async with Engine() as engine:
        await engine.load(MODEL, tiny_model)
        assert await text_of(engine.submit(ask()))
    assert asked == []


# ---------------------------------------------------------------- looking at it


async def test_a_snapshot_is_instant_while_the_thread_is_stuck(tiny_model: Path) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def entropy() -> int:
        # Asked for in the engine's thread, for the first unseeded sampler.
        stuck.set()
        go_on.wait(30)
        return 1

    async with Engine(entropy=entropy) as engine:
        await engine.load(MODEL, tiny_model)
        generation = engine.submit(ask(temperature=1.0))
        await asyncio.to_thread(stuck.wait, 30)
        began = time.perf_counter()
        slot = engine.snapshot().slot(MODEL)
        assert time.perf_counter() - began < 0.05
        go_on.set()
        assert slot is not None
        assert slot.running + slot.waiting == 1
        assert await text_of(generation)


async def test_memory_figures_are_mlxs_own_and_say_what_they_count(engine: Engine) -> None:
    await text_of(engine.submit(ask()))
    snapshot = engine.snapshot()
    assert snapshot.memory.source in {"metal", "cpu"}
    assert 0 < snapshot.memory.active_gb <= snapshot.memory.peak_gb
    assert snapshot.device
    assert snapshot.tokens_generated == 30


async def test_before_anything_was_loaded_there_is_nothing_to_see() -> None:
    async with Engine() as engine:
        snapshot = engine.snapshot()
        assert (snapshot.slots, snapshot.memory.source) == ((), "none")


# ---------------------------------------------------------------- the end


def _engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "engine" in thread.name]


async def test_closing_fails_what_is_in_flight_and_leaves_no_thread(tiny_model: Path) -> None:
    async with Engine(EngineSettings(max_running=1)) as engine:
        await engine.load(MODEL, tiny_model)
        running, waiting = (engine.submit(ask(max_tokens=900)) for _ in range(2))
        await anext(running)
        await engine.aclose()
    for generation in (running, waiting):
        with pytest.raises(EngineClosedError):
            await text_of(generation)
        await generation.released()
    assert _engine_threads() == []
    with pytest.raises(EngineClosedError):
        engine.submit(ask())
    with pytest.raises(EngineClosedError):
        await engine.load(MODEL, tiny_model)
    await engine.aclose()


async def test_closing_while_a_model_is_loading_fails_the_load(tiny_model: Path) -> None:
    async with Engine(EngineSettings(load_step_bytes=1)) as engine:
        load = asyncio.create_task(engine.load(MODEL, tiny_model))
        await asyncio.wait([load], timeout=0)
    with pytest.raises(EngineClosedError):
        await load


async def test_a_caller_that_gave_up_on_a_load_does_not_stop_it(tiny_model: Path) -> None:
    async with Engine() as engine:
        load = asyncio.create_task(engine.load(MODEL, tiny_model))
        await asyncio.wait([load], timeout=0)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        assert (await engine.load(MODEL, tiny_model)).model_id == MODEL


async def test_an_engine_that_was_never_started_closes() -> None:
    engine = Engine()
    with pytest.raises(EngineClosedError):
        engine.submit(ask())
    await engine.aclose()


async def test_if_the_thread_dies_everyone_is_told_why(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = engine.submit(ask(max_tokens=900))
    await anext(generation)

    def broken(_worker: Worker) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Worker, "_publish", broken)
    with pytest.raises(GenerationFailedError) as caught:
        await text_of(generation)
    assert caught.value.why == "RuntimeError"
    with pytest.raises(EngineClosedError):
        engine.submit(ask())


async def test_temporary_files_go_to_the_scratch_directory_while_the_engine_lives(
    tiny_model: Path, tmp_path: Path
) -> None:
    environ = {"TMPDIR": "/before"}
    async with Engine(environ=environ, scratch=tmp_path / "scratch") as engine:
        await engine.load("tiny", tiny_model)
        assert environ["TMPDIR"] == str(tmp_path / "scratch")
        assert stat.S_IMODE((tmp_path / "scratch").stat().st_mode) == 0o700
    assert environ["TMPDIR"] == "/before"
