"""This machine's measured speeds, while the daemon runs and from one run to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from darkbloom_provider import logs
from darkbloom_provider.engine import speeds
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.engine.speeds import Speed
from darkbloom_provider.protocol.messages import Hardware

SAVE_SECONDS = 60.0

_log = logs.get("daemon.speeds")


class MeasuredSpeeds:
    """What is known of each model's speed on this hardware.

    Args:
        home: The directory that remembers.
        hardware: This machine's name.
    """

    def __init__(self, home: Path, hardware: str) -> None:
        self._home = home
        self._hardware = hardware
        self._book = self._written = speeds.read(home)

    def note(self, engine: EngineSnapshot) -> None:
        """Take in what the engine has measured."""
        measured = {slot.model: slot.speed for slot in engine.slots}
        self._book = self._book.noting(self._hardware, measured)

    def registered(self, models: tuple[str, ...]) -> Speed:
        """The figures to register for a machine that serves these models."""
        return speeds.slowest(self._book.of(self._hardware), models)

    def save(self) -> None:
        """Write down what is new. A disk that refuses costs figures, nothing else."""
        book = self._book
        if book == self._written:
            return
        try:
            speeds.write(self._home, book)
        except OSError as error:
            _log.warning("measured speeds not remembered", error=type(error).__name__)
        else:
            self._written = book

    async def keep(
        self,
        engine: Callable[[], EngineSnapshot],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Note and save now and then until cancelled, and a last time then."""
        try:
            while True:
                await sleep(SAVE_SECONDS)
                self.note(engine())
                await asyncio.to_thread(self.save)
        finally:
            self.note(engine())
            self.save()


def hardware_name(hardware: Hardware) -> str:
    """What speeds are remembered under.

    >>> hardware_name(Hardware(chip_name="Apple M4 Max", gpu_cores=40, memory_gb=128))
    'Apple M4 Max, 40 GPU cores, 128 GiB'
    """
    parts = [hardware.chip_name or "unknown chip"]
    if hardware.gpu_cores:
        parts.append(f"{hardware.gpu_cores} GPU cores")
    return ", ".join([*parts, f"{hardware.memory_gb} GiB"])
