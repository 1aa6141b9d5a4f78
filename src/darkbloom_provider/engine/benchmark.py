"""How fast a model answers on this machine, measured through the engine as requests meet it.

Greedy requests with prompts of plain words, no two alike, so that no part of one has been computed
before, except where that is what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Protocol, TypeVar

from darkbloom_provider.engine.errors import EngineError
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import EngineSnapshot, GenerationRequest, MemorySnapshot

Result = TypeVar("Result")
Samples = Sequence[tuple[float, int]]
"""When text came (seconds), and the completion tokens up to there."""

_TEXT = (
    "the river was cold and the old bridge stood over it as the people of the town went home from "
    "work with bread and news and small plans for the next day while rain began to fall on stone"
)
_TRIAL_WORDS = 64


class Engine(Protocol):
    """What is needed of the engine; the model is in its memory."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Start a completion."""
        ...

    def snapshot(self) -> EngineSnapshot:
        """The engine as of its last step."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often."""

    batches: tuple[int, ...] = (1, 4, 8, 16)
    prompt_tokens: int = 512
    """About; how many tokens a text really has is told with the result."""
    output_tokens: int = 64
    rounds: int = 3
    """Of which the median counts."""
    patience_s: float = 20.0
    """A measurement that took longer than this in all is not repeated."""

    def within(self, context_length: int) -> Plan:
        """The same for a model that reads no more than so many tokens."""
        return replace(
            self,
            prompt_tokens=min(self.prompt_tokens, context_length // 2),
            output_tokens=min(self.output_tokens, context_length // 4),
        )


QUICK = Plan(prompt_tokens=128, output_tokens=16, rounds=1)


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second of all requests of a batch together."""

    batch: int
    prefill_tps: float
    """Prompt tokens, from asking to the last first token."""
    decode_tps: float
    """Completion tokens while all of the requests are being decoded."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one model does on this machine."""

    rates: tuple[Rates, ...]
    refused: tuple[int, ...]
    """Batches that do not fit into the memory that the engine may use."""
    prompt_tokens: int
    """Of the prompts whose first token was waited for."""
    ttft_cold_s: float
    ttft_warm_s: float
    """The same after a prompt that began alike: all but its last words were known."""
    memory: MemorySnapshot


async def measure(
    engine: Engine,
    model_id: str,
    plan: Plan,
    *,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Measure the model called `model_id`.

    Args:
        engine: Has the model in memory, and room for the largest batch.
        model_id: The model.
        plan: What, and how often.
        progress: Told the share that is done, and what is being measured now.
        clock: Seconds.

    Raises:
        EngineError: A request failed that one alone must be able to make.
    """
    bench = _Bench(engine, model_id, plan, clock)
    steps = len(plan.batches) + 1
    progress(0, "time to first token")
    await bench.get_to_know_the_tokenizer()
    cold, warm = await bench.first_tokens()
    rates: list[Rates] = []
    refused: list[int] = []
    for number, batch in enumerate(plan.batches, 1):
        progress(number / steps, f"batch of {batch}")
        try:
            rates.append(await bench.rates(batch))
        except EngineError as error:
            if batch == 1 or error.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            refused.append(batch)
    return Measurement(
        rates=tuple(rates),
        refused=tuple(refused),
        prompt_tokens=bench.prompt_tokens,
        ttft_cold_s=cold,
        ttft_warm_s=warm,
        memory=engine.snapshot().memory,
    )


def steady_rate(streams: Sequence[Samples]) -> float:
    """Tokens per second of several streams together, while every one of them was flowing.

    That is from the last stream's first text to the first stream's end. Streams that were never all
    flowing are counted from their first text to the end of all.

    >>> steady_rate([[(0.0, 1), (2.0, 5)], [(1.0, 1), (2.0, 3), (9.0, 4)]])
    6.0
    """
    start = max(samples[0][0] for samples in streams)
    end = min(samples[-1][0] for samples in streams)
    if end <= start:
        start = min(samples[0][0] for samples in streams)
        end = max(samples[-1][0] for samples in streams)
    tokens = sum(_count(samples, end) - _count(samples, start) for samples in streams)
    return tokens / max(end - start, 1e-9)


def _count(samples: Samples, moment: float) -> int:
    return max((count for when, count in samples if when <= moment), default=0)


class _Bench:
    """One run."""

    def __init__(
        self, engine: Engine, model_id: str, plan: Plan, clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._model_id = model_id
        self._plan = plan
        self._clock = clock
        self._ids = itertools.count()
        self._words_per_token = 1.0
        self.prompt_tokens = 0

    async def get_to_know_the_tokenizer(self) -> None:
        """How many words a token is, which also warms everything up."""
        generation = await self._read(self._text(_TRIAL_WORDS), 2)
        self._words_per_token = _TRIAL_WORDS / max(1, generation.usage.prompt_tokens)

    async def first_tokens(self) -> tuple[float, float]:
        """Seconds to the first token of an unknown prompt, and of one that begins alike."""

        async def pair() -> tuple[float, float]:
            text = self._prompt(self._plan.prompt_tokens)
            cold = await self._first_token(text)
            return cold, await self._first_token(f"{text} {self._text(4)}")

        pairs = await self._repeat(pair)
        return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)

    async def rates(self, batch: int) -> Rates:
        """Prompts alone, then completions alone."""
        prefill = await self._repeat(lambda: self._prefill_rate(batch))
        decode = await self._repeat(lambda: self._decode_rate(batch))
        return Rates(batch, statistics.median(prefill), statistics.median(decode))

    async def _first_token(self, text: str) -> float:
        start = self._clock()
        samples, generation = await self._timed(text, 2)
        self.prompt_tokens = generation.usage.prompt_tokens
        return samples[0][0] - start

    async def _prefill_rate(self, batch: int) -> float:
        texts = [self._prompt(self._plan.prompt_tokens) for _ in range(batch)]
        start = self._clock()
        done = await _together([self._read(text, 1) for text in texts])
        return sum(g.usage.prompt_tokens for g in done) / (self._clock() - start)

    async def _decode_rate(self, batch: int) -> float:
        texts = [self._text(8) for _ in range(batch)]
        # A few more than are counted: streams do not begin all at once.
        wanted = self._plan.output_tokens + 8
        done = await _together([self._timed(text, wanted) for text in texts])
        return steady_rate([samples for samples, _ in done])

    async def _repeat(self, work: Callable[[], Awaitable[Result]]) -> list[Result]:
        began = self._clock()
        results = [await work()]
        while len(results) < self._plan.rounds and self._clock() - began < self._plan.patience_s:
            results.append(await work())
        return results

    async def _read(self, text: str, tokens: int) -> Generation:
        return (await self._timed(text, tokens))[1]

    async def _timed(self, text: str, tokens: int) -> tuple[Samples, Generation]:
        generation = self._engine.submit(
            GenerationRequest(
                request_id=f"benchmark-{next(self._ids)}",
                model=self._model_id,
                prompt=text,
                max_tokens=tokens,
                ignore_eos=True,
            )
        )
        try:
            samples = [(self._clock(), delta.completion_tokens) async for delta in generation]
        finally:
            generation.cancel()
        samples.append((self._clock(), generation.usage.completion_tokens))
        return samples, generation

    def _prompt(self, tokens: int) -> str:
        return self._text(max(1, round(tokens * self._words_per_token)))

    def _text(self, words: int) -> str:
        # Measurements must be the same every time; nothing here is to be hard to guess.
        chance = random.Random(next(self._ids))  # noqa: S311
        return " ".join(chance.choices(_TEXT.split(), k=words))


async def _together(work: Sequence[Coroutine[None, None, Result]]) -> list[Result]:
    """Run all at once. If one fails the others are cancelled, and its own error is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in work]
    except* EngineError as group:
        raise _first(group) from None
    return [task.result() for task in running]


def _first(group: BaseExceptionGroup[EngineError]) -> EngineError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner
