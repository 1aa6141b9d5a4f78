"""Our engine, asked as the daemon asks it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import model
from benchmarks.scale import Scale
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest

_ids = itertools.count()


@contextlib.contextmanager
def model_folder(scale: Scale) -> Iterator[Path]:
    """The benchmarks' model, for the block."""
    with short_directory() as directory:
        yield model.build(directory / model.MODEL_ID, scale.shape)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory with a real and short name, as paths of Unix sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="db-") as directory:
        yield Path(directory).resolve()


@contextlib.asynccontextmanager
async def loaded_engine(
    folder: Path, settings: EngineSettings | None = None
) -> AsyncIterator[Engine]:
    """An engine that has the model in memory, and room for 16 requests at once."""
    async with Engine(settings or EngineSettings(max_running=16)) as engine:
        await engine.load(model.MODEL_ID, folder)
        yield engine


def request(prompt: str, tokens_out: int, **more: Any) -> GenerationRequest:
    """A greedy request, unless told otherwise."""
    plain = GenerationRequest(str(next(_ids)), model.MODEL_ID, prompt=prompt, max_tokens=tokens_out)
    return replace(plain, **more)


async def tokens_per_second(engine: Engine, requests: Sequence[GenerationRequest]) -> float:
    """Complete all requests at once, prompts included in the time."""
    start = time.perf_counter()
    tokens = await asyncio.gather(*(complete(engine, one) for one in requests))
    return sum(tokens) / (time.perf_counter() - start)


async def complete(engine: Engine, wanted: GenerationRequest) -> int:
    """Read a whole answer; its tokens."""
    generation = engine.submit(wanted)
    async for _delta in generation:
        pass
    return generation.usage.completion_tokens


async def first_token_seconds(engine: Engine, wanted: GenerationRequest) -> float:
    """From asking to the first text. The rest of the answer is waited for."""
    start = time.perf_counter()
    first = 0.0
    async for _delta in engine.submit(wanted):
        first = first or time.perf_counter() - start
    return first
