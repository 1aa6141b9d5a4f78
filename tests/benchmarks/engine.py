"""Our engine against mlx-lm's raw batch generator: same process, same weights, same tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from benchmarks import model, ours
from benchmarks.figure import Figure, compared
from benchmarks.raw import raw_generator
from benchmarks.scale import Scale

BATCHES = (1, 8, 16)
ROUNDS = 3
"""Times as many as elsewhere: the bar is three in a hundred below the peer."""


def measure(scale: Scale) -> list[Figure]:
    """Tokens per second of whole batches, prompts included."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    figures = []
    many = replace(scale, rounds=scale.rounds * ROUNDS)
    # No prompt comes twice: nobody's prompt cache has anything to give.
    mine, theirs = model.Prompts(), model.Prompts()
    async with raw_generator(folder) as raw, ours.loaded_engine(folder) as engine:
        for size in BATCHES:

            async def engine_rate(size: int = size) -> float:
                prompts = mine.some(size, scale.tokens_in)
                requests = [ours.request(prompt, scale.tokens_out) for prompt in prompts]
                return await ours.tokens_per_second(engine, requests)

            async def raw_rate(size: int = size) -> float:
                prompts = theirs.some(size, scale.tokens_in)
                return await raw.tokens_per_second(prompts, scale.tokens_out)

            name = f"engine.decode.b{size}"
            figures.append(await compared(name, "tokens/s", engine_rate, raw_rate, many))
    return figures
