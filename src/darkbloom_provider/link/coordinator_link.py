"""The link to a coordinator: dials, holds, waits and dials again, for ever, and says what it does.

Everything that is decided is decided in `session` (within a connection) and `reconnect` (between
connections); this is the loop around them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from darkbloom_provider import logs
from darkbloom_provider.link.connection import Connection
from darkbloom_provider.link.failure import Failure
from darkbloom_provider.link.jobs import Facts, JobSink
from darkbloom_provider.link.outbox import Depth
from darkbloom_provider.link.reconnect import Refused, attempts_after, retry_or_refuse, wait_s
from darkbloom_provider.link.session import Timings
from darkbloom_provider.link.socket import Socket, SocketLimits, dial
from darkbloom_provider.link.state import LinkState, Phase

_EMPTY = Depth(control_frames=0, jobs=0, job_frames=0, job_characters=0)
_log = logs.get("link")

T = TypeVar("T")


class CoordinatorLink:
    """Keeps one session with one coordinator."""

    def __init__(
        self,
        *,
        url: str,
        facts: Facts,
        jobs: JobSink,
        clock: Callable[[], float],
        random: Callable[[], float],
        on_state: Callable[[LinkState], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        timings: Timings | None = None,
        limits: SocketLimits | None = None,
    ) -> None:
        """Nothing happens before `run`.

        Args:
            url: The websocket address, as `config.websocket_url` spells it.
            facts: What this machine says about itself.
            jobs: Where requests go.
            clock: Seconds, never set back, also passing while the machine sleeps
                (`clock.waking_clock`).
            random: A number in [0, 1), for the spread of delays.
            on_state: Called with each new state, on the event loop.
            sleep: Waits for seconds.
            timings: The session's intervals, heartbeat among them.
            limits: The websocket's timeouts and sizes.
        """
        self._facts = facts
        self._jobs = jobs
        self._clock = clock
        self._random = random
        self._on_state = on_state
        self._sleep = sleep
        self._timings = timings or Timings()
        self._limits = limits or SocketLimits()
        self._state = LinkState(url=url, since=clock())
        self._connection: Connection | None = None
        self._drain_by: float | None = None
        self._interruption: asyncio.Timeout | None = None
        self._finished = asyncio.Event()
        self._finished.set()

    @property
    def state(self) -> LinkState:
        """The link as it is now."""
        return self._state

    @property
    def depth(self) -> Depth:
        """How much waits to be sent."""
        return _EMPTY if self._connection is None else self._connection.depth

    async def run(self) -> None:
        """Keep the session until drained or cancelled. Returns only after `drain`."""
        self._finished.clear()
        try:
            while self._drain_by is None:
                self._show(Phase.CONNECTING, retry_at=None)
                failure, registered_for_s = await self._one_connection()
                if failure is not None and self._drain_by is None:
                    await self._wait_after(failure, registered_for_s)
        finally:
            self._connection = None
            self._show(Phase.CLOSED, registered_at=None, retry_at=None)
            self._finished.set()

    async def drain(self, deadline_s: float) -> None:
        """Take no new work, let running jobs finish for `deadline_s` seconds, hang up, return.

        What still runs then ends with an error. Called again, the earlier deadline holds.
        """
        deadline = self._clock() + deadline_s
        self._drain_by = deadline if self._drain_by is None else min(self._drain_by, deadline)
        self._interrupt()
        if self._connection is not None:
            self._show(Phase.DRAINING)
            self._connection.drain(self._drain_by)
        await self._finished.wait()

    def request_reregister(self, reason: str = "the facts have changed") -> None:
        """What is registered has changed (models, token), or something looks wrong.

        Registers again on the same socket as soon as no job runs; while waiting, dials at once.
        """
        if self._connection is not None:
            self._connection.reregister(reason)
        elif self._state.phase in {Phase.WAITING, Phase.REFUSED}:
            self._interrupt()

    async def _one_connection(self) -> tuple[Failure | None, float | None]:
        """Dial and hold: why it ended (None: as wanted), and the seconds it was registered."""
        outcome = await self._until_interrupted(dial(self._state.url, self._limits))
        if not isinstance(outcome, Socket):
            return outcome, None
        self._connection = connection = self._connection_on(outcome)
        if self._drain_by is not None:
            connection.drain(self._drain_by)
        try:
            failure = await connection.hold()
        finally:
            self._connection = None
        registered_at = connection.registered_at
        return failure, None if registered_at is None else self._clock() - registered_at

    def _connection_on(self, socket: Socket) -> Connection:
        return Connection(
            socket,
            facts=self._facts,
            jobs=self._jobs,
            clock=self._clock,
            sleep=self._sleep,
            timings=self._timings,
            limits=self._limits,
            changed=self._connection_changed,
        )

    async def _wait_after(self, failure: Failure, registered_for_s: float | None) -> None:
        attempts = attempts_after(self._state.attempts, registered_for_s)
        verdict = retry_or_refuse(failure)
        delay = wait_s(verdict, attempts, self._random)
        problem = verdict.problem
        _log.warning(
            problem.what, why=problem.why, next_step=problem.next_step, retry_in_s=round(delay, 2)
        )
        self._show(
            Phase.REFUSED if isinstance(verdict, Refused) else Phase.WAITING,
            registered_at=None,
            attempts=attempts + 1,
            retry_at=self._clock() + delay,
            last_problem=problem,
        )
        await self._until_interrupted(self._sleep(delay))

    async def _until_interrupted(self, work: Awaitable[T]) -> T | None:
        """What `work` returns, or None with `work` cancelled by `_interrupt`."""
        try:
            async with asyncio.timeout(None) as self._interruption:
                return await work
        except TimeoutError:
            return None
        finally:
            self._interruption = None

    def _interrupt(self) -> None:
        if self._interruption is not None:
            self._interruption.reschedule(asyncio.get_running_loop().time())

    def _connection_changed(self) -> None:
        connection = self._connection
        if connection is None or connection.registered_at is None:
            return
        if self._state.registered_at is None:
            _log.info("registered", coordinator=self._state.url)
        self._show(
            Phase.REGISTERED if self._drain_by is None else Phase.DRAINING,
            registered_at=connection.registered_at,
            last_problem=connection.problem,
        )

    def _show(self, phase: Phase, **changes: Any) -> None:  # noqa: ANN401 — fields of LinkState
        since = self._state.since if phase is self._state.phase else self._clock()
        state = replace(self._state, phase=phase, since=since, **changes)
        if state != self._state:
            self._state = state
            if self._on_state is not None:
                self._on_state(state)
