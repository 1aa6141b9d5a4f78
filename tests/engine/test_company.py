"""Sixteen and sixty-four requests at once: nobody's words reach anybody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest

MODEL = "tiny"


@pytest.fixture
async def engine(tiny_model: Path) -> AsyncIterator[Engine]:
    # Slices of 16 tokens: prompts of all lengths are under way while others decode.
    settings = EngineSettings(
        max_running=16, max_waiting=64, prefill_step_busy=64, prefill_step_idle=128
    )
    async with Engine(settings) as engine:
        await engine.load(MODEL, tiny_model)
        yield engine


def ask(prompt: str, **options: Any) -> GenerationRequest:
    return GenerationRequest("r", MODEL, prompt=prompt, **{"max_tokens": 24, **options})


async def text_of(generation: Generation) -> str:
    return "".join([delta.text async for delta in generation])


def mixed(count: int) -> list[GenerationRequest]:
    """Prompts of 1 to some 300 tokens, each with a word of its own, greedy and seeded in turn."""
    choose = random.Random(5)
    return [
        ask(
            f"canary{number} " * choose.choice([1, 2, 7, 30]),
            max_tokens=choose.randint(1, 40),
            temperature=1.0 if number % 4 == 3 else 0.0,
            seed=number if number % 4 == 3 else None,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [16, 64])
async def test_every_request_gets_the_text_it_would_get_alone(engine: Engine, count: int) -> None:
    requests = mixed(count)
    generations = [engine.submit(request) for request in requests]
    together = await asyncio.gather(*(text_of(generation) for generation in generations))
    alone = [await text_of(engine.submit(request)) for request in requests]
    assert together == alone
    assert len(set(together)) > count // 2


async def test_survivors_of_cancelled_company_say_what_they_would_have_said(
    engine: Engine,
) -> None:
    requests = mixed(32)
    expected = [await text_of(engine.submit(request)) for request in requests]
    generations = [engine.submit(request) for request in requests]
    # Cancelled while waiting, in their prompts and while decoding, as the others go on.
    texts = [asyncio.create_task(text_of(generation)) for generation in generations]
    for number in range(1, 32, 2):
        generations[number].cancel()
        await texts[number - 1]
    for number in range(0, 32, 2):
        assert await texts[number] == expected[number]
    for generation in generations:
        await generation.released()
    slot = engine.snapshot().slot(MODEL)
    assert slot is not None
    assert (slot.running, slot.waiting) == (0, 0)
