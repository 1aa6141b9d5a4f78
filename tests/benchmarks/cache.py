"""What it is worth that prompts which begin alike are computed once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from benchmarks import model, ours
from benchmarks.figure import Figure, compared
from benchmarks.scale import Scale
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.requests import EngineSettings

CHATS = 16
TAIL = 16
"""Tokens that each prompt adds to the beginning it shares."""
SETTINGS = EngineSettings(max_running=CHATS)


def measure(scale: Scale) -> list[Figure]:
    """Seconds to the first token after a known beginning; tokens/s of chats that share one."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    without = replace(SETTINGS, prompt_cache_gb=0)
    async with (
        ours.loaded_engine(folder, SETTINGS) as engine,
        ours.loaded_engine(folder, without) as forgetful,
    ):
        return [
            await _warm(engine, scale),
            await _shared(engine, forgetful, scale),
        ]


async def _warm(engine: Engine, scale: Scale) -> Figure:
    beginnings, tails = model.Prompts(), model.Prompts()
    known = ""

    async def first_token(beginning: str) -> float:
        prompt = f"{beginning} {tails.take(TAIL)}"
        return await ours.first_token_seconds(engine, ours.request(prompt, 2))

    async def cold() -> float:
        nonlocal known
        known = beginnings.take(scale.prefix)
        return await first_token(known)

    async def warm() -> float:
        return await first_token(known)

    known = beginnings.take(scale.prefix)
    await first_token(known)
    return await compared("cache.warm_ttft", "s", warm, cold, scale)


async def _shared(engine: Engine, forgetful: Engine, scale: Scale) -> Figure:
    async def rate(asked: Engine, line: model.Prompts) -> float:
        # New in each round: that the first of the chats computes it is part of the time.
        beginning = line.take(scale.prefix)
        prompts = [f"{beginning} {line.take(TAIL)}" for _ in range(CHATS)]
        requests = [ours.request(prompt, scale.tokens_out) for prompt in prompts]
        return await ours.tokens_per_second(asked, requests)

    mine, theirs = model.Prompts(), model.Prompts()
    return await compared(
        "cache.shared_prefix_tps",
        "tokens/s",
        lambda: rate(engine, mine),
        lambda: rate(forgetful, theirs),
        scale,
    )
