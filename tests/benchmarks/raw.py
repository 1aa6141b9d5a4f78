"""The peer in the same process: mlx-lm's own batch generator, used as plainly as it can be."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import model
from darkbloom_provider.engine import runtime

Result = TypeVar("Result")
RUNNING_TOKENS = 8
"""Tokens that streams have before something is done to them: they flow."""


@dataclass(frozen=True)
class Stall:
    """What a long prompt did to the streams that were running."""

    longest_gap: float
    """Seconds between two tokens of one of them."""
    first_token: float
    """Seconds until the long prompt's own first token."""


class Raw:
    """The raw generator, in a thread of its own, in which all of MLX happens."""

    def __init__(self, thread: concurrent.futures.Executor) -> None:
        self._thread = thread
        self._model: Any = None
        self._tokenizer: Any = None

    async def load(self, folder: Path) -> None:
        """Read the model."""
        await self._in_thread(lambda: self._load(folder))

    async def tokens_per_second(
        self, prompts: list[str], tokens_out: int, *, chat: bool = False
    ) -> float:
        """Complete all prompts in one batch, prompts included in the time."""
        return await self._in_thread(lambda: self._complete(prompts, tokens_out, chat=chat))

    async def stall(self, prompts: list[str], long_prompt: str) -> Stall:
        """Let streams run, then insert a long prompt, all with the library's defaults."""
        return await self._in_thread(lambda: self._stall(prompts, long_prompt))

    async def close(self) -> None:
        """Free what belongs to the thread, in the thread."""
        await self._in_thread(self._close)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # ------------------------------------------------------------ in the thread

    def _load(self, folder: Path) -> None:
        runtime.prepare(runtime.process_environment())
        from mlx_lm import load

        self._model, self._tokenizer = load(str(folder))[:2]

    def _encode(self, prompt: str, *, chat: bool) -> list[int]:
        if not chat:
            return list(self._tokenizer.encode(prompt))
        messages = [{"role": "user", "content": prompt}]
        return list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def _generator(self, **settings: Any) -> Any:
        import mlx.core as mx
        from mlx_lm.generate import BatchGenerator

        return BatchGenerator(
            self._model,
            stop_tokens=[[model.EOS]],
            stream=mx.default_stream(mx.default_device()),
            **settings,
        )

    def _complete(self, prompts: list[str], tokens_out: int, *, chat: bool) -> float:
        start = time.perf_counter()
        generator = self._generator(max_tokens=tokens_out, completion_batch_size=len(prompts))
        generator.insert([self._encode(prompt, chat=chat) for prompt in prompts])
        tokens = 0
        unfinished = len(prompts)
        while unfinished:
            for response in generator.next()[1]:
                tokens += 1
                unfinished -= response.finish_reason is not None
        generator.close()
        return tokens / (time.perf_counter() - start)

    def _stall(self, prompts: list[str], long_prompt: str) -> Stall:
        generator = self._generator(max_tokens=model.CONTEXT)
        running = generator.insert([self._encode(prompt, chat=False) for prompt in prompts])
        counts = dict.fromkeys(running, 0)
        while min(counts.values()) < RUNNING_TOKENS:
            for response in generator.next()[1]:
                counts[response.uid] += 1
        start = time.perf_counter()
        [newcomer] = generator.insert([self._encode(long_prompt, chat=False)])
        seen = dict.fromkeys(running, start)
        longest, first = 0.0, 0.0
        since = dict.fromkeys(running, 0)
        while not first or not all(since.values()):
            for response in generator.next()[1]:
                now = time.perf_counter()
                if response.uid == newcomer:
                    first = first or now - start
                    continue
                longest = max(longest, now - seen[response.uid])
                seen[response.uid] = now
                since[response.uid] += bool(first)
        generator.remove([*running, newcomer])
        generator.close()
        return Stall(longest, first)

    def _close(self) -> None:
        import mlx.core as mx

        self._model = None
        mx.clear_cache()


@contextlib.asynccontextmanager
async def raw_generator(folder: Path) -> AsyncIterator[Raw]:
    """A peer for the block."""
    with concurrent.futures.ThreadPoolExecutor(1, "raw") as thread:
        raw = Raw(thread)
        await raw.load(folder)
        try:
            yield raw
        finally:
            await raw.close()
