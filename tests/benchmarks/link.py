"""What a chunk costs on its way into the socket, and how free the loop stays under many streams.

The coordinator's end is a process of its own (`hub.py`). The engine is a stand-in that says one
word whenever it is due, so that the rate is what it should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from benchmarks import hub
from benchmarks.figure import Figure, in_turn, percentile
from benchmarks.loop import lateness
from benchmarks.scale import Scale
from darkbloom_provider.daemon.answers import Answers
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import Offer, Terms
from darkbloom_provider.engine.requests import Delta, GenerationRequest, LoadedModel
from darkbloom_provider.engine.requests import Usage as Counted
from darkbloom_provider.link.coordinator_link import CoordinatorLink
from darkbloom_provider.link.jobs import JobSink
from darkbloom_provider.protocol import openai
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import Register, Usage
from darkbloom_provider.protocol.money import Price
from darkbloom_provider.protocol.openai import FinishReason
from support.daemon_parts import FakeBooks, nothing_to_prepare
from support.link_rig import Facts, Jobs
from support.processes import PATIENCE_S

CHUNKS = 4_000
STREAMS = 64
CHUNKS_PER_S = 2_000
EVENT = openai.chunk_event(
    id="chatcmpl-1", created=1_760_000_000, model=hub.MODEL, delta={"content": " word"}
).encode()


def measure(scale: Scale) -> list[Figure]:
    """Microseconds a chunk, and milliseconds that the loop is late."""
    return asyncio.run(_measure(scale))


async def _measure(scale: Scale) -> list[Figure]:
    chunk_s = await _rounds(scale, 1, _chunk_seconds)
    lag_s = await _rounds(scale, STREAMS, _lag_p99)
    return [
        Figure("link.chunk_us", chunk_s * 1e6, "us"),
        Figure("link.lag_p99_ms", lag_s * 1e3, "ms"),
    ]


Round = Callable[[str, Scale], Awaitable[float]]


async def _rounds(scale: Scale, streams: int, one: Round) -> float:
    with hub.running(streams) as url:
        (results,) = await in_turn([lambda: one(url, scale)], scale)
    return statistics.median(results)


# ---------------------------------------------------------------- one chunk


async def _chunk_seconds(url: str, _scale: Scale) -> float:
    """Seal, encode and write chunk after chunk of one stream; seconds each."""
    keys, jobs = KeyPair.generate(), Jobs()
    channel = Channel(keys, KeyPair.generate().public_text)
    async with _link(url, keys, jobs):
        reply = await jobs.started.get()
        await reply.accepted()
        start = time.perf_counter()
        for count in range(CHUNKS):
            await reply.chunk(channel.payload(EVENT), _usage(count))
        # Returns when it has been written, and with it everything before.
        await reply.complete(_usage(CHUNKS))
        return (time.perf_counter() - start) / CHUNKS


def _usage(completion_tokens: int) -> Usage:
    return Usage(prompt_tokens=17, completion_tokens=completion_tokens)


@contextlib.asynccontextmanager
async def _link(url: str, keys: KeyPair, jobs: JobSink) -> AsyncIterator[None]:
    """A link that is up for the block, which must not wait for ever should it fail."""
    link = CoordinatorLink(
        url=url,
        facts=_KeyedFacts(public_key=keys.public_text),
        jobs=jobs,
        clock=time.monotonic,
        random=random.random,
    )
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield
    finally:
        running.cancel()
        await asyncio.wait([running])


@dataclass
class _KeyedFacts(Facts):
    """Facts with a key that requests can be sealed for."""

    public_key: str = ""

    def registration(self) -> tuple[Register, str | None]:
        return Register(models=self.models, public_key=self.public_key), None


# ---------------------------------------------------------------- many streams


async def _lag_p99(url: str, scale: Scale) -> float:
    """Seconds that timers, and the words of the streams, are late in all but one of 100 cases."""
    keys, tally = KeyPair.generate(), Tally()
    engine = _PacedEngine(words=max(2, round(CHUNKS_PER_S / STREAMS * scale.load_s)))
    terms = Terms(
        key_pair=keys,
        price=lambda _model: Price(50_000, 200_000),
        linked=lambda: True,
        now=lambda: dt.datetime.now(dt.UTC),
        flush_seconds=0,
        chunks_per_second=math.inf,  # The pace is the engine's here: every word is a chunk.
        max_jobs=STREAMS,
    )
    offer = Offer(models=lambda: (hub.MODEL,), prepare=nothing_to_prepare)
    async with asyncio.TaskGroup() as tasks:
        answers = Answers(engine, offer, tally, tasks, terms.now)
        runner = JobRunner(answers, FakeBooks(), terms, tally, tasks)
        async with _link(url, keys, runner):
            await engine.all_begun.wait()
            with lateness() as timers:
                await engine.all_said.wait()
            # Now: the hub asks again at once, and what is said to that has no schedule.
            late = [*timers, *engine.late]
            await runner.idle()
    return percentile(late, 0.99)


class _PacedEngine:
    """Has STREAMS generations at once, which say CHUNKS_PER_S words a second between them."""

    def __init__(self, words: int) -> None:
        self.words = words
        self.late: list[float] = []
        self.all_begun = asyncio.Event()
        self.all_said = asyncio.Event()
        self._begun = 0
        self._open = STREAMS
        self._starts_at = 0.0

    def loaded(self, _model_id: str) -> LoadedModel | None:
        return None

    def submit(self, _request: GenerationRequest) -> _PacedGeneration:
        generation = _PacedGeneration(self, self._begun / CHUNKS_PER_S)
        self._begun += 1
        if self._begun == STREAMS:
            self._starts_at = time.perf_counter()
            self.all_begun.set()
        return generation

    async def due(self, offset: float) -> None:
        """Wait for a moment of the schedule, and note how late it is."""
        await self.all_begun.wait()
        moment = self._starts_at + offset
        await asyncio.sleep(max(0.0, moment - time.perf_counter()))
        self.late.append(max(0.0, time.perf_counter() - moment))

    def said(self) -> None:
        self._open -= 1
        if not self._open:
            self.all_said.set()


class _PacedGeneration:
    """Says a word whenever one is due. Falling behind, it is late for the next ones too."""

    def __init__(self, engine: _PacedEngine, offset: float) -> None:
        self._engine = engine
        self._offset = offset
        self.finish_reason: FinishReason | None = None
        self.stop_sequence: str | None = None
        self.prompt_end = ""
        self.usage = Counted(17, 0)
        self._over = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        for number in range(self._engine.words):
            await self._engine.due(self._offset + number * STREAMS / CHUNKS_PER_S)
            self.usage = Counted(17, number + 1)
            yield Delta(" word", number + 1)
        self.finish_reason = "length"
        self._over.set()
        self._engine.said()

    def cancel(self) -> None:
        self._over.set()

    async def released(self) -> None:
        await self._over.wait()
