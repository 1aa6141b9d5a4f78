"""Memory stays under the ceiling: measured by MLX's own counters while a real model works."""

from __future__ import annotations

import asyncio
import random
from http import HTTPStatus
from pathlib import Path

import mlx.core as mx
import pytest

from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.errors import EngineError, InsufficientMemoryError, NoRoomError
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from support.tiny_model import CONTEXT_LENGTH

MB = 10**6
SYSTEM = "the stone and the river " * 12


def settings(ceiling: int, **options: object) -> EngineSettings:
    return EngineSettings(
        max_running=8,
        max_waiting=64,
        prefill_step_idle=64,
        prefill_step_busy=32,
        memory_ceiling_gb=ceiling / 1e9,
        **options,  # type: ignore[arg-type] # numbers, as the settings want them
    )


async def outcome(engine: Engine, request: GenerationRequest) -> str:
    try:
        generation = engine.submit(request)
        async for _delta in generation:
            pass
    except EngineError as error:
        return "refused" if error.status_code == HTTPStatus.SERVICE_UNAVAILABLE else "failed"
    assert generation.finish_reason is not None
    return "served"


def held() -> int:
    mx.synchronize()
    mx.clear_cache()
    return int(mx.get_active_memory())


@pytest.mark.parametrize(("megabytes", "seed"), [(5, 1), (9, 2), (40, 3)])
async def test_no_mix_of_requests_takes_more_than_the_ceiling(
    tiny_model: Path, megabytes: int, seed: int
) -> None:
    ceiling = held() + megabytes * MB
    pick = random.Random(seed)
    async with Engine(settings(ceiling)) as engine:
        await engine.load("m", tiny_model)
        mx.reset_peak_memory()
        requests = [
            GenerationRequest(
                str(n),
                "m",
                prompt=SYSTEM[: pick.randrange(1, 200)] + " water" * pick.randrange(120),
                max_tokens=pick.choice([1, 20, 60]),
            )
            for n in range(24)
        ]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(outcome(engine, request)) for request in requests]
        peak = mx.get_peak_memory()
        outcomes = [task.result() for task in running]
    assert peak <= ceiling
    assert set(outcomes) <= {"served", "refused"}
    assert outcomes.count("served") > len(requests) // 2


async def test_a_request_that_can_never_fit_is_refused_at_once_with_the_numbers(
    tiny_model: Path,
) -> None:
    ceiling = held() + 4 * MB
    async with Engine(settings(ceiling)) as engine:
        await engine.load("m", tiny_model)
        generation = engine.submit(
            GenerationRequest("r", "m", prompt=SYSTEM * 4, max_tokens=CONTEXT_LENGTH)
        )
        with pytest.raises(InsufficientMemoryError, match=r"would need .* GB .* may use .* GB"):
            async for _delta in generation:
                pass
        assert await outcome(engine, GenerationRequest("s", "m", prompt="a", max_tokens=3)) == (
            "served"
        )


async def test_a_model_that_can_never_fit_is_not_read(tiny_model: Path) -> None:
    before = held()
    async with Engine(settings(100_000)) as engine:
        with pytest.raises(NoRoomError, match="on this machine") as refusal:
            await engine.load("m", tiny_model)
        assert not refusal.value.ever
        slot = engine.snapshot().slot("m")
        assert slot is not None
        assert slot.state == "crashed"
    assert held() <= before


async def test_the_prompt_cache_gives_way_before_a_request_is_refused(tiny_model: Path) -> None:
    ceiling = held() + 5 * MB
    async with Engine(settings(ceiling)) as engine:
        await engine.load("m", tiny_model)
        mx.reset_peak_memory()
        for n in range(6):
            request = GenerationRequest(str(n), "m", prompt=f"{n} {SYSTEM * 2}", max_tokens=100)
            assert await outcome(engine, request) == "served"
        assert mx.get_peak_memory() <= ceiling


async def test_an_idle_model_gives_way_before_a_request_or_a_model_is_refused(
    tiny_model: Path,
) -> None:
    """One model alone fits easily, two only while nothing large is asked for."""
    base = held()
    async with Engine(settings(base + 500 * MB)) as engine:
        loaded = await engine.load("m", tiny_model)
    ceiling = base + 8 * MB + loaded.weight_bytes
    async with Engine(settings(ceiling)) as engine:
        await engine.load("one", tiny_model)
        await engine.load("two", tiny_model)
        large = GenerationRequest("r", "two", prompt="a", max_tokens=900)
        assert await outcome(engine, large) == "served"


async def test_a_request_without_a_limit_gets_what_fits(tiny_model: Path) -> None:
    ceiling = held() + 4 * MB
    async with Engine(settings(ceiling)) as engine:
        await engine.load("m", tiny_model)
        generation = engine.submit(GenerationRequest("r", "m", prompt="a"))
        async for _delta in generation:
            pass
        assert generation.finish_reason == "length"
        assert 1 <= generation.usage.completion_tokens < CONTEXT_LENGTH - 1
