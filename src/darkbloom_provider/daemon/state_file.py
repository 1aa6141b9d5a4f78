"""`daemon-state.json`: the daemon's state for programs that read a file rather than ask a socket.

Schema 1, as the community's tools know it. They take a file older than 90 s for stale and compare
`process_identity` with the process of that pid. Fields may be added to it; none changes its meaning
without another schema.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import queue
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer

from darkbloom_provider import logs
from darkbloom_provider.daemon.facts import capacity
from darkbloom_provider.daemon.state import DaemonState, Moment
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.paths import replace_private

SCHEMA: Final = 1
KV_BACKEND: Final = "mlx-lm"
"""Whose key-value caches hold a running request. There is no other to ask for."""

_log = logs.get("daemon.state_file")


def _whole_seconds(at: dt.datetime) -> str:
    """RFC 3339 in UTC, whole seconds: several parsers refuse a fraction."""
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Instant = Annotated[dt.datetime, PlainSerializer(_whole_seconds)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ProcessIdentity(_Part):
    """What tells this process from a later one with the same pid."""

    pid: int
    start_time_micros: int
    """As the system tells it, in microseconds since 1970; 0 if it does not."""


class Trust(_Part):
    """Where this machine stands with the coordinator, as far as a provider can know.

    No message tells it. The level is the highest that a coordinator can justify.
    """

    trust_level: Literal["none", "self_signed"]
    status: Literal["offline", "online", "serving"]
    reason: str | None
    """What keeps work away, if anything is known to."""
    received_at: Instant | None
    """When the coordinator took the present registration."""


class SlotEntry(_Part):
    """One model in memory."""

    model: str
    kv_backend: str
    kv_backend_requested: str
    mtp_enabled: bool
    """Several tokens predicted at once: never, this engine decodes one at a time."""
    mtp_active: bool


class Capacity(_Part):
    """The figures of the heartbeat, in GiB."""

    total_memory_gb: float
    gpu_memory_active_gb: float
    gpu_memory_cache_gb: float


class Stats(_Part):
    """Since the start of the process."""

    requests_served: int
    tokens_generated: int
    usage_gaps: int
    """Completed requests whose token counts are not in the journal yet."""


class LoadError(_Part):
    """The latest model that could not be loaded."""

    model: str
    message: str
    at: Instant


class Document(_Part):
    """The whole file."""

    version: int = SCHEMA
    pid: int
    process_identity: ProcessIdentity
    started_at: Instant
    written_at: Instant
    trust: Trust
    current_model: str | None
    """The one used last, of those in memory."""
    warm_models: tuple[str, ...]
    slots: tuple[SlotEntry, ...]
    capacity: Capacity | None
    """None until the machine has been measured."""
    stats: Stats
    inference_active: bool
    last_model_load_error: LoadError | None


def document(state: DaemonState, engine: EngineSnapshot, moment: Moment) -> Document:
    """The file's content for a daemon as of `moment`."""
    warm = () if state.phase == "stopped" else state.warm
    failure = state.load_failure
    return Document(
        pid=state.pid,
        process_identity=ProcessIdentity(
            pid=state.pid, start_time_micros=state.process_start_micros
        ),
        started_at=state.started_at,
        written_at=moment.now,
        trust=_trust(state, moment),
        current_model=warm[0] if warm else None,
        warm_models=warm,
        slots=tuple(
            SlotEntry(
                model=model,
                kv_backend=KV_BACKEND,
                kv_backend_requested=KV_BACKEND,
                mtp_enabled=False,
                mtp_active=False,
            )
            for model in warm
        ),
        capacity=_capacity(state, engine),
        stats=Stats(
            requests_served=state.jobs.served,
            tokens_generated=state.jobs.completion_tokens,
            usage_gaps=0 if state.books is None else state.books.unwritten,
        ),
        inference_active=state.jobs.in_flight > 0,
        last_model_load_error=None
        if failure is None
        else LoadError(
            model=failure.model, message=failure.message, at=moment.at(failure.at_clock_s)
        ),
    )


def _trust(state: DaemonState, moment: Moment) -> Trust:
    link = None if state.phase == "stopped" else state.link
    if link is None or link.registered_at is None:
        problem = None if link is None else link.last_problem
        return Trust(
            trust_level="none",
            status="offline",
            reason=None if problem is None else problem.what,
            received_at=None,
        )
    return Trust(
        trust_level="self_signed" if state.attested else "none",
        status="serving" if state.jobs.in_flight else "online",
        reason=None if link.last_problem is None else link.last_problem.what,
        received_at=moment.at(link.registered_at),
    )


def _capacity(state: DaemonState, engine: EngineSnapshot) -> Capacity | None:
    if state.memory_gib is None:
        return None
    figures = capacity(engine, state.memory_gib)
    return Capacity(
        total_memory_gb=figures.total_memory_gb,
        gpu_memory_active_gb=figures.gpu_memory_active_gb,
        gpu_memory_cache_gb=figures.gpu_memory_cache_gb,
    )


class StateFile:
    """Keeps the file up to date. A disk that refuses costs the file its freshness, nothing else.

    It has a thread of its own, which the loop hands the daemon's state and does not wait for: this
    is what an idle daemon does most of, so it is made cheap (`daemon.idle_cpu_pct`).
    """

    def __init__(
        self,
        path: Path,
        look: Callable[[], tuple[DaemonState, Moment]],
        engine: Callable[[], EngineSnapshot],
    ) -> None:
        """Nothing is written before `keep`.

        Args:
            path: The file.
            look: The daemon as it is now; called on the event loop.
            engine: The engine as it is now; called on the thread, so that one that is stuck holds
                up the file alone.
        """
        self._path = path
        self._look = look
        self._engine = engine
        self._text = _Text()
        self._offers: queue.SimpleQueue[_Offer | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failing = False

    async def keep(
        self, every_s: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """Have it written now, then every `every_s` seconds, until cancelled."""
        while True:
            # While the disk or the engine is stuck, what waits to be written does not pile up.
            if self._offers.empty():
                self._offer(Future())
            await sleep(every_s)

    async def write(self) -> None:
        """Write the file once, after whatever is being written."""
        written: Future[None] = Future()
        self._offer(written)
        await asyncio.wrap_future(written)

    def close(self) -> None:
        """Let the thread end, after what it has been handed."""
        self._offers.put(None)

    def _offer(self, written: Future[None]) -> None:
        self._offers.put(_Offer(*self._look(), written))
        if self._thread is None:
            # A daemon: a write that is stuck must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name="state-file", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (offer := self._offers.get()) is not None:
            # Written all the same if its caller has given up, who is not told then.
            wanted = offer.written.set_running_or_notify_cancel()
            self._write(offer.state, offer.moment)
            if wanted:
                offer.written.set_result(None)

    def _write(self, state: DaemonState, moment: Moment) -> None:
        try:
            engine = EngineSnapshot() if state.phase == "stopped" else self._engine()
            replace_private(self._path, self._text.of(state, engine, moment))
        except Exception as error:  # noqa: BLE001 — a file for others must not end the daemon
            if not self._failing:
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                _log.warning("the state file is not written", why=why)
            self._failing = True
        else:
            self._failing = False


@dataclass(frozen=True, slots=True)
class _Offer:
    state: DaemonState
    moment: Moment
    written: Future[None]


class _Text:
    """The file's bytes. While nothing has happened only the time in them changes."""

    def __init__(self) -> None:
        self._shown: tuple[DaemonState, EngineSnapshot, dt.datetime] | None = None
        self._around: tuple[str, str] = ("", "")

    def of(self, state: DaemonState, engine: EngineSnapshot, moment: Moment) -> bytes:
        # Every other time in the file is told by the distance between the two clocks.
        shown = (state, engine, moment.at(0).replace(microsecond=0))
        written_at = f'"written_at":"{_whole_seconds(moment.now)}"'
        if shown != self._shown:
            text = document(state, engine, moment).model_dump_json()
            before, _, after = text.partition(written_at)
            self._shown, self._around = shown, (before, after)
        return "".join((self._around[0], written_at, self._around[1], "\n")).encode()
