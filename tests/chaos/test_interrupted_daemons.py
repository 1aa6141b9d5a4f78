"""Signals at the worst moments: a quiet end, nothing in the next one's way, consumers told."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.paths import Home
from support.network import CHAT, CREDIT, PATIENT, Network, events, network
from support.processes import Program, running, until
from support.provider_home import (
    MODEL,
    PLAIN_WORDS,
    journal_rows,
    provider_home,
    until_served,
)

CONSUMERS = 4
LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": PLAIN_WORDS}],
    "temperature": 0,
    "max_tokens": 800,
    "n": 8,
    "stream": True,
}
"""Eight answers of 800 tokens: four such requests keep the tiny model busy for many seconds."""


def ctrl_c(program: Program) -> None:
    program.ctrl_c()


def sigterm(program: Program) -> None:
    program.signal(signal.SIGTERM)


def sigkill(program: Program) -> None:
    program.signal(signal.SIGKILL)


Stop = Callable[[Program], None]
CODES: dict[Stop, int] = {
    ctrl_c: -signal.SIGINT,
    sigterm: -signal.SIGTERM,
    sigkill: -signal.SIGKILL,
}
"""How a process ends that does not handle the signal."""


def serves(program: Program) -> bool:
    """Whether it has become the process that serves: `serve` starts itself again with `-I`."""
    return "-I" in psutil.Process(program.pid).cmdline()


@dataclass(frozen=True)
class Moment:
    """A point in the daemon's start, seen from outside."""

    name: str
    reached: Callable[[Home, Program], bool]
    handled: bool = True
    """Whether the daemon handles signals by then. Before, they end it as any starting program."""

    def codes(self, stop: Stop) -> set[int]:
        """The exit codes that are right for a signal here."""
        return {0} if self.handled else {0, 130, CODES[stop]}


MOMENTS = (
    Moment("began to serve", lambda _, program: serves(program), handled=False),
    Moment("is starting", lambda home, _: home.control_socket.exists()),
    Moment("loads", lambda _, program: "posture" in program.output),
    Moment("has loaded", lambda _, program: "model loaded" in program.output),
    Moment("registers", lambda _, program: "registering" in program.output),
    Moment("is registered", lambda _, program: "registered " in program.output),
)


def assert_left_nothing(home: Home, program: Program) -> None:
    """Neither a traceback nor a socket, and a lock file that nobody holds."""
    assert "Traceback" not in program.output, program.output
    assert "Exception ignored" not in program.output, program.output
    assert not home.control_socket.exists()
    if home.pid_file.exists():
        assert home.pid_file.read_text() == ""
        with home.pid_file.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.asynccontextmanager
async def private_network(directory: Path) -> AsyncIterator[Network]:
    policy = Policy(max_requests=CONSUMERS)
    async with network(directory, timing=PATIENT, policy=policy) as net:
        yield net


async def stop_at(moments: Sequence[Moment], stops: Iterator[Stop], home: Home) -> None:
    for moment, stop in zip(moments, stops, strict=False):
        with running("provider", "serve", home=home.root) as program:

            def reached(moment: Moment = moment, program: Program = program) -> bool:
                return moment.reached(home, program)

            await until(reached, f"a provider that {moment.name}", of=program)
            stop(program)
            assert await program.ended() in moment.codes(stop), (moment.name, program.output)
        assert_left_nothing(home, program)


async def test_a_stop_while_it_starts_ends_it_quietly(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with private_network(tmp_path / "coordinator") as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        await stop_at(MOMENTS[::2], itertools.cycle((ctrl_c, sigterm)), home)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stop", [ctrl_c, sigterm])
async def test_a_stop_at_every_moment_of_the_start_ends_it_quietly(
    tmp_path: Path, home_root: Path, tiny_model: Path, stop: Stop
) -> None:
    async with private_network(tmp_path / "coordinator") as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        for _ in range(10):
            await stop_at(MOMENTS, itertools.repeat(stop), home)


class Consumers:
    """Several streams at once; tells when the first of them has begun, and how each ended."""

    def __init__(self, net: Network, tasks: asyncio.TaskGroup, count: int, **changes: Any) -> None:
        self.begun = asyncio.Event()
        self._net = net
        self._streams = [tasks.create_task(self._read(LONG | changes)) for _ in range(count)]

    async def _read(self, body: dict[str, Any]) -> str:
        async with self._net.http.stream("POST", CHAT, json=body) as reply:
            text = ""
            async for piece in reply.aiter_text():
                text += piece
                self.begun.set()
        return text if reply.status_code == 200 else f"data: {text}\n\n"

    async def endings(self) -> list[str | dict[str, Any]]:
        """The last payload of each: `[DONE]`, or the error."""
        payloads = [events(text)[-1] for text in await asyncio.gather(*self._streams)]
        return [p if p == "[DONE]" else json.loads(p)["error"] for p in payloads]


async def test_ctrl_c_mid_stream_takes_no_new_work_finishes_and_exits_0(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with private_network(tmp_path / "coordinator") as net, asyncio.TaskGroup() as tasks:
        home = provider_home(home_root, net.ws_url, tiny_model)
        with running("provider", "serve", home=home.root) as program:
            await until_served(net, program)
            consumers = Consumers(net, tasks, 2, n=2)
            await consumers.begun.wait()
            program.ctrl_c()
            await until(lambda: "draining" in program.output, "the drain", of=program)
            late = await net.ask(max_tokens=4)
            assert await consumers.endings() == ["[DONE]"] * 2
            assert await program.ended() == 0
        assert late.status_code == 503
        assert late.json()["error"]["type"]
        await net.idle()
        assert sorted(await net.job_states()) == ["refunded", "settled", "settled"]
        assert await net.spent() == sum(row.estimate_micro_usd for row in journal_rows(home))
        assert_left_nothing(home, program)


async def test_a_second_signal_cuts_what_runs_and_consumers_are_told(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with private_network(tmp_path / "coordinator") as net, asyncio.TaskGroup() as tasks:
        home = provider_home(home_root, net.ws_url, tiny_model)
        with running("provider", "serve", home=home.root) as program:
            await until_served(net, program)
            consumers = Consumers(net, tasks, CONSUMERS)
            await consumers.begun.wait()
            program.signal(signal.SIGTERM)
            await until(lambda: "draining" in program.output, "the drain", of=program)
            program.ctrl_c()
            assert await program.ended() == 0
        await assert_all_were_cut(net, home, consumers)
        assert "second stop signal" in program.output
        assert_left_nothing(home, program)


async def test_at_the_drain_deadline_what_runs_is_cut_and_the_exit_is_still_0(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with private_network(tmp_path / "coordinator") as net, asyncio.TaskGroup() as tasks:
        home = provider_home(home_root, net.ws_url, tiny_model)
        with running("provider", "serve", "--timeout", "0.5", home=home.root) as program:
            await until_served(net, program)
            consumers = Consumers(net, tasks, CONSUMERS)
            await consumers.begun.wait()
            program.signal(signal.SIGTERM)
            assert await program.ended() == 0
        await assert_all_were_cut(net, home, consumers)
        assert_left_nothing(home, program)


async def assert_all_were_cut(net: Network, home: Home, consumers: Consumers) -> None:
    """Each consumer has a typed error and its money, nobody was paid, nothing is journalled."""
    for ending in await consumers.endings():
        assert isinstance(ending, dict)
        assert ending["type"] == "provider_error"
        assert ending["message"]
    await net.idle()
    assert await net.job_states() == ["refunded"] * CONSUMERS
    assert await net.balance() == CREDIT
    assert journal_rows(home) == []


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(5))
async def test_stops_at_random_moments_leave_nothing_in_the_next_ones_way(
    tmp_path: Path, home_root: Path, tiny_model: Path, seed: int
) -> None:
    """One or two signals anywhere from the start to the drain; the next daemon starts at once."""
    chance = random.Random(seed)
    async with private_network(tmp_path / "coordinator") as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        for _ in range(10):
            with running("provider", "serve", home=home.root) as program:
                await until(lambda p=program: serves(p), "the provider to begin", of=program)
                async with asyncio.TaskGroup() as tasks:
                    asking = tasks.create_task(keep_asking(net))
                    stops = chance.choices((ctrl_c, sigterm, sigkill), k=chance.choice((1, 2)))
                    for longest_s, stop in zip((4.0, 0.5), stops, strict=False):
                        await asyncio.sleep(chance.uniform(0, longest_s))
                        if program.running:
                            stop(program)
                    code = await program.ended()
                    asking.cancel()
            assert code in {0, 130, *(CODES[stop] for stop in stops)}
            assert "Traceback" not in program.output, program.output
            if "stop signal" in program.output and sigkill not in stops:
                assert_left_nothing(home, program)
            await net.idle()
            assert set(await net.job_states()) <= {"settled", "refunded", "partial"}


async def keep_asking(net: Network) -> None:
    """A consumer who always wants something."""
    while True:
        with contextlib.suppress(httpx.HTTPError):
            await net.http.post(CHAT, json=LONG | {"n": 1})
        await asyncio.sleep(0.05)
