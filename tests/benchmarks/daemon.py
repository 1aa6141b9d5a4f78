"""What an idle daemon costs its owner, and how soon it is back after its coordinator was away.

Coordinator and provider are the processes that operators and owners run.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from benchmarks import ours
from benchmarks.figure import Figure
from benchmarks.scale import Scale
from support.processes import Program, free_port, running, until
from support.provider_home import provider_home

HEARTBEAT_S = 5
"""What owners have."""
UNLOAD_S = 90.0
"""An idle model goes after a minute; whether it is time is looked up every 15 s."""
WAIT = re.compile(r"retry_in_s=([\d.]+)")
LINE = re.compile(r"^(?P<at>\S+Z) \[\w+ *\] (?P<what>.*)$", re.MULTILINE)


def measure(scale: Scale) -> list[Figure]:
    """Percent of a core, MB and seconds."""
    with ours.model_folder(scale) as folder:
        return asyncio.run(_measure(folder, scale))


@dataclass(frozen=True)
class _Idle:
    cpu_percent: float
    rss_mb: float


async def _measure(folder: Path, scale: Scale) -> list[Figure]:
    idle = _Idle(0, 0)
    waits = []
    for number in range(scale.rounds):
        with ours.short_directory() as directory:
            port = free_port()
            home = provider_home(
                directory / "home", f"http://127.0.0.1:{port}", folder, heartbeat_s=HEARTBEAT_S
            )
            coordinator = _Coordinator(directory / "operator", port)
            with (
                coordinator,
                running("provider", "serve", "--idle-timeout", "1", home=home.root) as provider,
            ):
                await coordinator.up()
                await _registered(provider, times=1)
                if not number:
                    idle = await _idle(provider, scale)
                waits.append(await _reconnect_seconds(coordinator, provider))
    return [
        Figure("link.reconnect_s", statistics.median(waits), "s"),
        Figure("daemon.idle_cpu_pct", idle.cpu_percent, "% of a core"),
        Figure("daemon.idle_rss_mb", idle.rss_mb, "MB"),
    ]


class _Coordinator:
    """`darkbloom coordinator serve`, again and again, on one port and one directory."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._port = str(port)
        self._program: Program | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.down()

    async def up(self) -> None:
        """Start, and wait until it listens."""
        self._program = Program(
            "coordinator", "coordinator", "serve", "--port", self._port, home=self._home
        )
        program = self._program
        await until(lambda: "Ctrl-C stops it." in program.output, "a coordinator", of=program)

    def down(self) -> None:
        """Kill it."""
        if self._program is not None:
            self._program.kill()


async def _registered(provider: Program, *, times: int) -> None:
    def registrations() -> int:
        return sum(what.startswith("registered ") for _, what in _log(provider))

    await until(lambda: registrations() >= times, "the provider to be registered", of=provider)


async def _idle(provider: Program, scale: Scale) -> _Idle:
    """Watch a daemon that nobody asks anything, until it has let go of its model."""
    process = psutil.Process(provider.pid)
    before, start = process.cpu_times(), time.perf_counter()
    await asyncio.sleep(scale.idle_s)
    after, end = process.cpu_times(), time.perf_counter()
    used = sum(after[:4]) - sum(before[:4])
    if scale.unload:
        await until(
            lambda: "given back" in provider.output, "an unloaded model", UNLOAD_S, of=provider
        )
    return _Idle(100 * used / (end - start), process.memory_info().rss / 1e6)


async def _reconnect_seconds(coordinator: _Coordinator, provider: Program) -> float:
    """From a coordinator's death to the next registration, without what both had to wait for.

    What is left is the time to notice, and the time from the moment that the policy chose for the
    successful dial until the coordinator has taken the registration.
    """
    killed_at = dt.datetime.now(dt.UTC)
    coordinator.down()
    await coordinator.up()
    await _registered(provider, times=2)
    log = [(at, what) for at, what in _log(provider) if at >= killed_at]
    failures = [(at, float(wait[1])) for at, what in log if (wait := WAIT.search(what))]
    registered_at = max(at for at, what in log if what.startswith("registered "))
    noticed_at = failures[0][0]
    last_failure_at, delay_s = max(failures)
    dialled_at = last_failure_at + dt.timedelta(seconds=delay_s)
    return ((noticed_at - killed_at) + (registered_at - dialled_at)).total_seconds()


def _log(provider: Program) -> list[tuple[dt.datetime, str]]:
    return [
        (dt.datetime.fromisoformat(line["at"]), line["what"])
        for line in LINE.finditer(provider.output)
    ]
