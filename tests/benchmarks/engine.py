"""Our engine against mlx-lm's raw batch generator: same process, same weights, same tokens."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks import model
from benchmarks.figure import Figure, medians_in_turn
from darkbloom_provider.engine import runtime
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest

BATCHES = (1, 8, 16)
TOKENS_IN, TOKENS_OUT = 64, 64


def measure() -> list[Figure]:
    """Tokens per second of whole batches, prompt included."""
    with tempfile.TemporaryDirectory() as directory:
        folder = model.build(Path(directory) / model.MODEL_ID)
        return asyncio.run(_measure(folder))


async def _measure(folder: Path) -> list[Figure]:
    figures = []
    with concurrent.futures.ThreadPoolExecutor(1, "raw") as thread:
        loop = asyncio.get_running_loop()
        raw = await loop.run_in_executor(thread, Raw, folder)
        async with Engine(EngineSettings(max_running=max(BATCHES))) as engine:
            await engine.load(model.MODEL_ID, folder)
            for size in BATCHES:
                prompts = [raw.prompt(variant) for variant in range(size)]
                ours = _blocking(loop, functools.partial(_ours, engine, prompts))
                peer = _in(thread, functools.partial(raw.tokens_per_second, prompts))
                medians = await asyncio.to_thread(medians_in_turn, ours, peer)
                figures.append(Figure(f"engine.decode.b{size}", medians[0], "tokens/s", medians[1]))
        await loop.run_in_executor(thread, raw.close)
    return figures


def _blocking(
    loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, float]]
) -> Callable[[], float]:
    return lambda: asyncio.run_coroutine_threadsafe(work(), loop).result()


def _in(thread: concurrent.futures.Executor, work: Callable[[], float]) -> Callable[[], float]:
    return lambda: thread.submit(work).result()


async def _ours(engine: Engine, prompts: list[str]) -> float:
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(_complete(engine, str(index), prompt))
            for index, prompt in enumerate(prompts)
        ]
    return sum(task.result() for task in running) / (time.perf_counter() - start)


async def _complete(engine: Engine, request_id: str, prompt: str) -> int:
    generation = engine.submit(
        GenerationRequest(request_id, model.MODEL_ID, prompt=prompt, max_tokens=TOKENS_OUT)
    )
    async for _delta in generation:
        pass
    return generation.usage.completion_tokens


class Raw:
    """mlx-lm's batch generator, used as plainly as it can be. Lives in one thread."""

    def __init__(self, folder: Path) -> None:
        runtime.prepare(runtime.process_environment())
        from mlx_lm import load

        self._model, self._tokenizer = load(str(folder))[:2]

    def prompt(self, variant: int) -> str:
        """A text of `TOKENS_IN` tokens."""
        return model.prompt(self._tokenizer.backend_tokenizer, TOKENS_IN, variant=variant)

    def tokens_per_second(self, prompts: list[str]) -> float:
        """Complete all prompts in one batch."""
        import mlx.core as mx
        from mlx_lm.generate import BatchGenerator

        start = time.perf_counter()
        generator = BatchGenerator(
            self._model,
            stop_tokens=[[model.EOS]],
            max_tokens=TOKENS_OUT,
            completion_batch_size=len(prompts),
            stream=mx.default_stream(mx.default_device()),
        )
        generator.insert([list(self._tokenizer.encode(prompt)) for prompt in prompts])
        tokens = 0
        open_prompts = len(prompts)
        while open_prompts:
            for response in generator.next()[1]:
                tokens += 1
                open_prompts -= response.finish_reason is not None
        generator.close()
        return tokens / (time.perf_counter() - start)

    def close(self) -> None:
        """Free what belongs to this thread, in this thread."""
        import mlx.core as mx

        del self._model
        mx.clear_cache()
