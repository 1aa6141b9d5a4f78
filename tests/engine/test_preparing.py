"""Prompts are read beside the engine's thread: a slow tokenizer holds up nobody's stream."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine import prompt
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    EngineError,
    GenerationFailedError,
    InvalidGenerationError,
    OutOfServiceError,
    OverloadedError,
)
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.prompt import EncodedPrompt, Tokenizer
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest

MODEL, OTHER = "tiny", "other"
LIMIT = 60.0
WAIT = 30
SLOW, FAULTY = "slow ", "faulty "


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowTokenizer:
    """Reads prompts that begin with `SLOW` only while its gate is open; notes what it has read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.begun = threading.Event()
        self.read: list[str] = []
        real = prompt.read

        def read(tokenizer: Tokenizer, request: GenerationRequest) -> EncodedPrompt:
            text = request.prompt or ""
            self.read.append(text)
            self.begun.set()
            if text.startswith(SLOW):
                self.reached.set()
                assert self.open.wait(WAIT)
            if text.startswith(FAULTY):
                raise MemoryError(text)
            return real(tokenizer, request)

        monkeypatch.setattr(prompt, "read", read)

    async def begins(self) -> None:
        """Wait until it reads any prompt."""
        await asyncio.to_thread(self.begun.wait, WAIT)

    async def stuck(self) -> None:
        """Wait until it reads a slow prompt."""
        await asyncio.to_thread(self.reached.wait, WAIT)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(tiny_model: Path, clock: Clock) -> AsyncIterator[Engine]:
    settings = EngineSettings(max_running=4, max_waiting=4, stall_limit_s=LIMIT)
    async with Engine(settings, clock=clock) as engine:
        await engine.load(MODEL, tiny_model)
        yield engine


@pytest.fixture
async def slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowTokenizer]:
    tokenizer = SlowTokenizer(monkeypatch)
    yield tokenizer
    tokenizer.open.set()  # or closing the engine would wait for it


def ask(text: str = "hello", max_tokens: int = 20, **options: Any) -> GenerationRequest:
    return GenerationRequest("r", MODEL, prompt=text, max_tokens=max_tokens, **options)


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


async def served_again(engine: Engine) -> str:
    """The text of a request as soon as one is taken."""
    while True:
        try:
            return await text_of(engine.submit(ask()))
        except OutOfServiceError:
            await asyncio.sleep(0)


async def test_running_streams_go_on_while_a_huge_prompt_is_tokenised(
    engine: Engine, slow: SlowTokenizer
) -> None:
    stream = engine.submit(ask(max_tokens=400))
    await anext(stream)
    late = engine.submit(ask(SLOW, 3))
    await slow.stuck()
    # The tokenizer stands still: every token from here on is a step that did not wait for it.
    text = await text_of(stream)
    assert (stream.finish_reason, stream.usage.completion_tokens) == ("length", 400)
    assert text
    assert late.prompt_tokens is None
    slot = engine.snapshot().slot(MODEL)
    assert slot is not None
    assert (slot.running, slot.waiting) == (0, 1)
    slow.open.set()
    await text_of(late)
    assert late.usage.completion_tokens == 3


async def test_requests_join_in_the_order_of_their_arrival(
    engine: Engine, slow: SlowTokenizer
) -> None:
    prompts = [f"{SLOW}first", "second", "third"]
    generations = [engine.submit(ask(text, 1)) for text in prompts]
    await slow.stuck()
    assert slow.read == prompts[:1]
    slow.open.set()
    for generation in generations:
        await text_of(generation)
    assert slow.read == prompts


async def test_another_models_prompts_are_read_meanwhile(
    engine: Engine, slow: SlowTokenizer, tiny_model: Path
) -> None:
    await engine.load(OTHER, tiny_model)
    late = engine.submit(ask(SLOW, 3))
    await slow.stuck()
    assert await text_of(engine.submit(GenerationRequest("r", OTHER, prompt="a", max_tokens=3)))
    assert late.prompt_tokens is None


async def test_cancelled_while_its_prompt_waits_or_is_read_it_never_reaches_the_batch(
    engine: Engine, slow: SlowTokenizer
) -> None:
    being_read, waiting, survivor = (
        engine.submit(ask(text, 3)) for text in (SLOW, "waiting", "survivor")
    )
    await slow.stuck()
    being_read.cancel()
    waiting.cancel()
    await waiting.released()  # at once: nothing was held of it
    assert await text_of(being_read) == await text_of(waiting) == ""
    slow.open.set()
    await being_read.released()
    assert await text_of(survivor)
    assert engine.snapshot().tokens_generated == 3
    assert slow.read == [SLOW, "survivor"]
    assert being_read.prompt_tokens is None


async def test_what_is_being_read_counts_against_the_queue(
    engine: Engine, slow: SlowTokenizer
) -> None:
    accepted = [engine.submit(ask(SLOW, 1)) for _ in range(8)]
    with pytest.raises(OverloadedError):
        engine.submit(ask())
    slow.open.set()
    for generation in accepted:
        await text_of(generation)
    assert await text_of(engine.submit(ask()))


async def test_a_tokenizer_that_fails_is_a_typed_error_of_its_request_alone(
    engine: Engine, slow: SlowTokenizer
) -> None:
    stream = engine.submit(ask(max_tokens=50))
    with pytest.raises(GenerationFailedError) as caught:
        await text_of(engine.submit(ask(FAULTY + "secret")))
    assert caught.value.status_code == 500
    assert caught.value.why == "MemoryError"
    assert "secret" not in "".join(caught.value.lines())
    assert await text_of(stream)


async def test_messages_that_the_template_cannot_render_end_only_their_request(
    engine: Engine,
) -> None:
    stream = engine.submit(ask(max_tokens=50))
    bad = GenerationRequest("r", MODEL, messages=({"content": "no role"},))
    with pytest.raises(InvalidGenerationError) as caught:
        await text_of(engine.submit(bad))
    assert caught.value.status_code == 400
    assert await text_of(stream)


async def test_closing_while_a_prompt_is_read_fails_its_request(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine() as engine:
        await engine.load(MODEL, tiny_model)
        slow = SlowTokenizer(monkeypatch)
        being_read, waiting = (engine.submit(ask(SLOW)) for _ in range(2))
        await slow.stuck()
        slow.open.set()
    for generation in (being_read, waiting):
        with pytest.raises(EngineClosedError):
            await text_of(generation)
        await generation.released()
    assert not [one for one in threading.enumerate() if one.name.startswith("darkbloom-prompts")]


async def test_a_model_unloaded_while_a_prompt_is_read_fails_its_requests(
    engine: Engine, slow: SlowTokenizer
) -> None:
    being_read, waiting = (engine.submit(ask(SLOW)) for _ in range(2))
    await slow.stuck()
    await engine.unload(MODEL)
    slow.open.set()
    for generation in (being_read, waiting):
        with pytest.raises(EngineError, match="not in memory"):
            await text_of(generation)


async def test_a_tokenizer_that_is_stuck_takes_its_model_out_of_service_until_it_is_back(
    engine: Engine, slow: SlowTokenizer, clock: Clock, tiny_model: Path
) -> None:
    await engine.load(OTHER, tiny_model)
    stream = engine.submit(ask(max_tokens=900))
    await anext(stream)
    being_read, waiting = (engine.submit(ask(SLOW)) for _ in range(2))
    await slow.stuck()
    await text_of(stream)
    clock.now += LIMIT * 1.25
    engine._watch.look()
    for generation in (being_read, waiting):
        with pytest.raises(OutOfServiceError) as caught:
            await text_of(generation)
        assert caught.value.why == "tiny has been reading one prompt for 75 s"
    with pytest.raises(OutOfServiceError):
        engine.submit(ask())
    slot = engine.snapshot().slot(MODEL)
    assert slot is not None
    assert (slot.state, slot.waiting, slot.problem) == ("crashed", 0, caught.value.why)
    assert await text_of(engine.submit(GenerationRequest("r", OTHER, prompt="a", max_tokens=3)))

    slow.open.set()
    assert await served_again(engine)


POISON = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
"""Goes on for hours, within all that the templates' sandbox allows."""


@pytest.fixture
async def poisoned(tiny_model: Path, tmp_path: Path, clock: Clock) -> AsyncIterator[Engine]:
    path = tmp_path / "poisoned"
    shutil.copytree(tiny_model, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = POISON + config["chat_template"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    async with Engine(EngineSettings(stall_limit_s=LIMIT), clock=clock) as engine:
        await engine.load(MODEL, path)
        yield engine


async def given_up(engine: Engine, clock: Clock, reader: SlowTokenizer) -> None:
    """Ask with a message, wait until its template is being rendered, and for too long."""
    reader.begun.clear()
    message = {"role": "user", "content": "secret"}
    generation = engine.submit(GenerationRequest("r", MODEL, messages=(message,)))
    await reader.begins()
    clock.now += LIMIT + 1
    engine._watch.look()
    with pytest.raises(GenerationFailedError, match="took too long") as caught:
        await text_of(generation)
    assert "secret" not in "".join(caught.value.lines())
    await generation.released()


async def test_a_template_that_never_ends_is_given_up_and_the_next_prompt_is_read(
    poisoned: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = SlowTokenizer(monkeypatch)
    await given_up(poisoned, clock, reader)
    assert await text_of(poisoned.submit(ask()))


async def test_a_template_that_never_ends_again_and_again_is_left_alone_for_a_while(
    poisoned: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = SlowTokenizer(monkeypatch)
    for _ in range(3):
        await given_up(poisoned, clock, reader)
    with pytest.raises(OutOfServiceError, match="takes for ever"):
        poisoned.submit(ask())
    slot = poisoned.snapshot().slot(MODEL)
    assert slot is not None
    assert slot.state == "crashed"
    clock.now += 1
    assert await text_of(poisoned.submit(ask()))
    slot = poisoned.snapshot().slot(MODEL)
    assert slot is not None
    assert slot.problem is None
