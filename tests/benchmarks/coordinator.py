"""What a coordinator carries: whole requests, single chunks, and providers that do nothing.

It is the process that operators run: SQLite on the disk with full sync, owners who are credited
for every answer. Providers and consumers are stubs in the measuring process, on the same cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Connection, func, select

from benchmarks import ours, relay
from benchmarks.figure import Figure, in_turn, percentile
from benchmarks.scale import Scale
from benchmarks.stubs import Pace, stub_consumers, stub_providers
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.server import DATABASE_FILE
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.coordinator.store.schema import earnings
from support.network import network
from support.processes import Program, running, until

PROVIDERS = 8
CONSUMERS = 64
QUICK = Pace(chunks=20, interval_s=0.002)
STREAMS = 16
STEADY = Pace(chunks=20, interval_s=0.04)
"""25 tokens/s, as a person reads them."""
CREDIT = 10**12


def measure(scale: Scale) -> list[Figure]:
    """Requests a second, milliseconds and kilobytes."""
    return asyncio.run(_measure(scale))


async def _measure(scale: Scale) -> list[Figure]:
    with ours.short_directory() as directory:
        prepared = await _prepare(directory / "state")
        async with _coordinator(directory, "--max-requests", str(CONSUMERS)) as coordinator:
            requests = await _rounds(coordinator, prepared, scale, _requests_per_s)
            through, bare = await in_turn(
                [lambda: _chunk_delay(coordinator, prepared, scale), lambda: _bare_delay(scale)],
                scale,
            )
        async with _coordinator(directory) as coordinator:
            session_bytes = await _session_bytes(coordinator, scale)
        await _must_be_right(directory / "state", prepared)
    added = statistics.median(through) - statistics.median(bare)
    return [
        Figure("coord.requests_per_s", requests, "requests/s"),
        Figure("coord.chunk_latency_p50_ms", 1e3 * added, "ms"),
        Figure("coord.session_kb", session_bytes / 1e3, "kB"),
    ]


@dataclass
class _Prepared:
    """A consumer's key, the tokens of owners' machines, and what has been asked so far."""

    key: str
    tokens: list[str]
    answers: int = 0


@dataclass(frozen=True)
class _Coordinator:
    program: Program
    base_url: str

    def resident(self) -> int:
        """Bytes of memory it occupies."""
        size: int = psutil.Process(self.program.pid).memory_info().rss
        return size


async def _prepare(directory: Path) -> _Prepared:
    """The state of a coordinator with a rich consumer and the machines of an owner."""
    async with network(directory, credit=CREDIT) as net:
        key = await net.coordinator.operator.create_api_key(net.account)
        token, _ = await net.link()
        return _Prepared(key.reveal(), [token])


@contextlib.asynccontextmanager
async def _coordinator(directory: Path, *options: str) -> AsyncIterator[_Coordinator]:
    command = ("coordinator", "serve", "--port", "0", "--rate-limit", "0")
    where = ("--data", str(directory / "state"))
    with running("coordinator", *command, *where, *options, home=directory) as program:
        await until(lambda: "Ctrl-C stops it." in program.output, "the coordinator", of=program)
        yield _Coordinator(program, re.findall(r"Coordinator: (http://\S+)", program.output)[0])
        program.ctrl_c()
        await program.ended()


Round = Callable[[_Coordinator, _Prepared, Scale], Awaitable[float]]


async def _rounds(
    coordinator: _Coordinator, prepared: _Prepared, scale: Scale, one: Round
) -> float:
    (results,) = await in_turn([lambda: one(coordinator, prepared, scale)], scale)
    return statistics.median(results)


async def _requests_per_s(coordinator: _Coordinator, prepared: _Prepared, scale: Scale) -> float:
    """Whole answers a second, asked for by as many consumers as keep the coordinator busy."""
    url, base = coordinator.base_url, prepared.answers
    async with (
        stub_providers(url, PROVIDERS, tokens=prepared.tokens, pace=QUICK),
        stub_consumers(url, prepared.key, CONSUMERS, chunks=QUICK.chunks) as consumers,
    ):
        await asyncio.sleep(scale.load_s / 3)
        before, start = sum(consumer.answers for consumer in consumers), time.perf_counter()
        await asyncio.sleep(scale.load_s)
        answers = sum(consumer.answers for consumer in consumers) - before
        rate = answers / (time.perf_counter() - start)
    prepared.answers = base + sum(consumer.answers for consumer in consumers)
    return rate


async def _chunk_delay(coordinator: _Coordinator, prepared: _Prepared, scale: Scale) -> float:
    """Seconds from a chunk's write at its provider to its arrival at the consumer: the median."""
    url, delays = coordinator.base_url, list[float]()
    async with (
        stub_providers(url, PROVIDERS, tokens=prepared.tokens, pace=STEADY),
        stub_consumers(
            url, prepared.key, STREAMS, chunks=STEADY.chunks, delays=delays
        ) as consumers,
    ):
        await asyncio.sleep(scale.load_s)
    prepared.answers += sum(consumer.answers for consumer in consumers)
    return percentile(delays, 0.5)


async def _bare_delay(scale: Scale) -> float:
    """The same way without a coordinator: two ways through the kernel, one loop between them."""
    return percentile(await relay.delays(STREAMS, STEADY.interval_s, scale.load_s), 0.5)


async def _session_bytes(coordinator: _Coordinator, scale: Scale) -> float:
    """What each more of many providers, registered and checked, occupies while it is idle."""
    async with stub_providers(coordinator.base_url, scale.sessions // 10):
        before = coordinator.resident()
        async with stub_providers(coordinator.base_url, scale.sessions):
            return (coordinator.resident() - before) / scale.sessions


async def _must_be_right(directory: Path, prepared: _Prepared) -> None:
    """A figure of a coordinator that lost a micro-dollar is none."""

    def recorded(connection: Connection) -> int:
        count: int = connection.execute(select(func.count()).select_from(earnings)).scalar_one()
        return count

    database = await Database.open(directory / DATABASE_FILE)
    try:
        findings, jobs = await database.read(audit), await database.read(recorded)
    finally:
        await database.close()
    if findings or jobs != prepared.answers:
        raise RuntimeError(f"{jobs} jobs for {prepared.answers} answers; {findings}")
