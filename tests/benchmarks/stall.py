"""What running streams feel of a long prompt, and what it costs the prompt that they are spared."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from pathlib import Path

from benchmarks import model, ours
from benchmarks.figure import Figure, in_turn
from benchmarks.raw import RUNNING_TOKENS, Stall, raw_generator
from benchmarks.scale import Scale
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.generation import Generation

STREAMS = 4


def measure(scale: Scale) -> list[Figure]:
    """Seconds of the longest gap in a stream, and until the long prompt's first token."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    mine, theirs = model.Prompts(), model.Prompts()
    async with raw_generator(folder) as raw, ours.loaded_engine(folder) as engine:

        async def engine_stall() -> Stall:
            prompts = mine.some(STREAMS, scale.tokens_in)
            return await _stall(engine, prompts, mine.take(scale.long_prompt))

        async def raw_stall() -> Stall:
            prompts = theirs.some(STREAMS, scale.tokens_in)
            return await raw.stall(prompts, theirs.take(scale.long_prompt))

        results = await in_turn([engine_stall, raw_stall], scale)
    gaps = [statistics.median(stall.longest_gap for stall in taken) for taken in results]
    firsts = [statistics.median(stall.first_token for stall in taken) for taken in results]
    return [
        Figure("engine.stall_s", gaps[0], "s", gaps[1]),
        Figure("engine.stall_ttft", firsts[0], "s", firsts[1]),
    ]


class _Stream:
    """One running stream, and when its text came."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self.times: list[float] = []
        self.flows = asyncio.Event()
        self._resumed = asyncio.Event()
        self._watched_from: float | None = None

    async def run(self) -> None:
        async for delta in self._generation:
            self.times.append(time.perf_counter())
            if delta.completion_tokens >= RUNNING_TOKENS:
                self.flows.set()
            if self._watched_from is not None:
                self._resumed.set()

    async def next_token(self) -> None:
        self._watched_from = time.perf_counter()
        await self._resumed.wait()

    def longest_gap(self, start: float) -> float:
        times = [start, *(moment for moment in self.times if moment > start)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    async def stop(self) -> None:
        self._generation.cancel()
        await self._generation.released()


async def _stall(engine: Engine, prompts: list[str], long_prompt: str) -> Stall:
    streams = [_Stream(engine.submit(ours.request(prompt, model.CONTEXT))) for prompt in prompts]
    async with asyncio.TaskGroup() as tasks:
        for stream in streams:
            tasks.create_task(stream.run())
        for stream in streams:
            await stream.flows.wait()
        start = time.perf_counter()
        first = await ours.first_token_seconds(engine, ours.request(long_prompt, 1))
        for stream in streams:
            await stream.next_token()
        for stream in streams:
            await stream.stop()
    return Stall(max(stream.longest_gap(start) for stream in streams), first)
