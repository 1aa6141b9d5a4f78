"""Noticing, from the event loop, that the engine's thread gets nowhere.

A call into MLX that hangs cannot be interrupted. What can be done is to tell those who wait, to
take no more, to say so in `status`, and to build everything anew if the thread ever comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the engine's thread says of itself. Replaced whole, never changed."""

    model: str | None = None
    """The model whose step is under way; None if nothing is to be computed."""
    progress_at: float = 0.0
    """When a token or a piece of a prompt last came out, or when there was first something to do.
    Monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Hang:
    """The thread gets nowhere."""

    model: str
    seconds: float

    @property
    def reason(self) -> str:
        """In one sentence."""
        return f"{self.model} has computed nothing for {self.seconds:.0f} s"


def overdue(pulse: Pulse, now: float, limit_s: float) -> Hang | None:
    """Whether work is under way that has made no progress for longer than `limit_s`."""
    waited = now - pulse.progress_at
    return None if pulse.model is None or waited <= limit_s else Hang(pulse.model, waited)


class Watch:
    """Looks at the pulse from time to time. Belongs to the event loop's thread.

    Args:
        pulse: The thread's latest.
        limit_s: Seconds without progress that are too long.
        clock: The thread's clock.
        on_hang: Called once for each hang.
        on_look: Called at every look, for what else has a time limit.
    """

    def __init__(
        self,
        pulse: Callable[[], Pulse],
        *,
        limit_s: float,
        clock: Callable[[], float],
        on_hang: Callable[[Hang], None],
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._pulse = pulse
        self._limit_s = limit_s
        self._clock = clock
        self._on_hang = on_hang
        self._on_look = on_look
        self._timer: asyncio.TimerHandle | None = None
        self.hang: Hang | None = None
        """The hang that the thread has not come back from."""
        self.hung = asyncio.Event()
        """Set while there is one."""

    def start(self) -> None:
        """Look now, and again every tenth of the limit."""
        self.look()
        self._timer = asyncio.get_running_loop().call_later(self._limit_s / 10, self.start)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Look once."""
        self._on_look()
        if self.hang is not None:
            return
        self.hang = overdue(self._pulse(), self._clock(), self._limit_s)
        if self.hang is not None:
            self.hung.set()
            self._on_hang(self.hang)

    def back(self) -> None:
        """The thread has come back."""
        self.hang = None
        self.hung.clear()
