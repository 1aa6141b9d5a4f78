"""How free the event loop stays while the engine works, and how soon it lets go of a request."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks import model, ours
from benchmarks.figure import Figure, in_turn, percentile
from benchmarks.scale import Scale
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.requests import EngineSettings

BATCH = 16
TICK_S = 0.002
Phase = Literal["waiting", "prompt", "decoding"]
PHASES: tuple[Phase, ...] = ("waiting", "prompt", "decoding")


def measure(scale: Scale) -> list[Figure]:
    """Milliseconds that the loop is late, and engine steps from a cancel to the freed place."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    line = model.Prompts()
    async with ours.loaded_engine(folder, EngineSettings(max_running=BATCH)) as engine:
        (lags,) = await in_turn([lambda: _lag_p99(engine, line, scale)], scale)
        steps = [
            await _steps_to_release(engine, line, scale, phase)
            for _ in range(scale.rounds)
            for phase in PHASES
        ]
    return [
        Figure("loop.lag_p99_ms", statistics.median(lags) * 1e3, "ms"),
        Figure("engine.cancel_steps", max(steps), "steps"),
    ]


async def _lag_p99(engine: Engine, line: model.Prompts, scale: Scale) -> float:
    """Seconds that a timer is late, in all but one of a hundred cases, during a batch of 16."""
    requests = [ours.request(text, scale.tokens_out) for text in line.some(BATCH, scale.tokens_in)]
    with lateness() as lags:
        await asyncio.gather(*(ours.complete(engine, one) for one in requests))
    return percentile(lags, 0.99)


@contextlib.contextmanager
def lateness() -> Iterator[list[float]]:
    """Collects the seconds that a timer of the running loop is late during the block."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            lags.append(max(0.0, time.perf_counter() - due))

    ticking = asyncio.create_task(tick())
    try:
        yield lags
    finally:
        ticking.cancel()


async def _steps_to_release(engine: Engine, line: model.Prompts, scale: Scale, phase: Phase) -> int:
    """Steps the engine has begun since the cancel, when nothing of the request is left in it."""
    # With all places taken, it waits in line.
    others = BATCH if phase == "waiting" else BATCH // 2
    running = [
        engine.submit(ours.request(text, model.CONTEXT))
        for text in line.some(others, scale.tokens_in)
    ]
    for generation in running:
        await anext(generation)
    doomed = engine.submit(ours.request(line.take(scale.long_prompt), model.CONTEXT))
    if phase == "decoding":
        await anext(doomed)
    elif phase == "prompt":
        await _joined(engine, others + 1)
    before = engine.snapshot().steps
    doomed.cancel()
    await doomed.released()
    steps = engine.snapshot().steps - before
    for generation in running:
        generation.cancel()
    for generation in running:
        await generation.released()
    return steps


async def _joined(engine: Engine, count: int) -> None:
    """Wait until so many requests are in the batch."""
    while True:
        slot = engine.snapshot().slot(model.MODEL_ID)
        if slot is not None and slot.running >= count:
            return
        await asyncio.sleep(0)
