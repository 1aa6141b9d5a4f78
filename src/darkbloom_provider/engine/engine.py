"""The front of the engine, on the event loop: load, submit, look, close. Free of MLX."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from darkbloom_provider import logs
from darkbloom_provider.engine import runtime
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    EngineError,
    GenerationFailedError,
    OutOfServiceError,
)
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import (
    EngineSettings,
    EngineSnapshot,
    GenerationRequest,
    LoadedModel,
    SlotSnapshot,
)
from darkbloom_provider.engine.residency import Residency
from darkbloom_provider.engine.submissions import Submissions
from darkbloom_provider.engine.updates import (
    Close,
    Displaced,
    Loaded,
    LoadFailed,
    Recovered,
    Reset,
    Unloaded,
    Update,
)
from darkbloom_provider.engine.watch import Hang, Watch
from darkbloom_provider.engine.worker import Worker

_log = logs.get("engine")

THREAD_NAME = "darkbloom-engine"


def runs_in_this_process() -> bool:
    """Whether an engine's thread lives here, now."""
    return any(thread.name == THREAD_NAME for thread in threading.enumerate())


class Engine:
    """Owns the one MLX thread of the process. Use as `async with Engine() as engine`.

    All methods belong to the loop's thread, and none but `load`, `unload` and `aclose` waits.

    Args:
        settings: Bounds.
        entropy: Random numbers of 64 bits, for sampling without a seed.
        environ: The process's environment; libraries are kept offline through it.
        scratch: A private directory for their temporary files; None leaves the system's.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        entropy: Callable[[], int] = lambda: secrets.randbits(64),
        environ: MutableMapping[str, str] | None = None,
        scratch: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings or EngineSettings()
        self._worker = Worker(
            settings=self._settings,
            entropy=entropy,
            post=self._post,
            environ=runtime.process_environment() if environ is None else environ,
            scratch=scratch,
            clock=clock,
        )
        self._watch = Watch(
            lambda: self._worker.pulse,
            limit_s=self._settings.stall_limit_s,
            clock=clock,
            on_hang=self._on_hang,
            on_look=self._on_look,
        )
        self._residency = Residency(
            self._worker.inbox.put, clock=clock, stall_limit_s=self._settings.stall_limit_s
        )
        self._submissions = Submissions(
            self._residency, self._worker.inbox.put, settings=self._settings, clock=clock
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        # A daemon thread: a process that dies of something else must not hang on a long step.
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()
        self._watch.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Fail what is in flight with `EngineClosedError` and end the thread. Idempotent.

        Waits for the step that is under way, unless it hangs; then the thread is left to itself and
        dies with the process. Being cancelled meanwhile does not stop the closing.
        """
        if self._thread is None or self._ended is None:
            self._closed = True
            return
        if not self._closed:
            self._closed = True
            self._worker.inbox.put(Close())
        hung = asyncio.ensure_future(self._watch.hung.wait())
        either: list[asyncio.Future[Any]] = [self._ended, hung]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hung.cancel()
        if not self._watch.hung.is_set():
            self._thread.join()
        elif not self._ended.done():
            self._on_end(None)
        await self._residency.aclose()

    # ------------------------------------------------------------ models

    async def load(self, model_id: str, path: Path, *, make_room: bool = True) -> LoadedModel:
        """Load the mlx-lm folder at `path`; requests name it `model_id`. Idempotent.

        Streams of other models go on meanwhile. With `make_room`, models that nobody uses are
        unloaded if it does not fit beside them.

        Raises:
            NoRoomError: It does not fit under the memory's ceiling; nothing was read.
            OutOfServiceError: The engine's thread hangs.
            ModelError: The folder is not there, not complete, or not a model MLX can run.
            EngineClosedError: The engine is closing.
        """
        self._check_open()
        self._check_hang(model_id)
        return await asyncio.shield(self._residency.load(model_id, path, make_room=make_room))

    async def unload(self, model_id: str) -> None:
        """Free a model's memory. Requests still on it fail with `ModelNotLoadedError`.

        Raises:
            EngineClosedError: The engine is closing.
        """
        self._check_open()
        if self._residency.loaded(model_id) is not None:
            self._check_hang(model_id)
        pending = self._residency.unload(model_id)
        if pending is not None:
            await asyncio.shield(pending)

    def loaded(self, model_id: str) -> LoadedModel | None:
        """What was learnt of a model in memory; None if it is not there."""
        return self._residency.loaded(model_id)

    # ------------------------------------------------------------ requests

    def submit(self, request: GenerationRequest) -> Generation:
        """Start a completion. What needs the tokenizer to be found out is raised by iterating.

        A request to a model that is being loaded, or that had to make room for another, waits until
        it is in memory.

        Raises:
            InvalidGenerationError: A parameter makes no sense (400).
            ModelNotLoadedError: The model was never loaded here (404), or was unloaded (503).
            OverloadedError: The model's bounded queue is full (503).
            OutOfServiceError: It failed again and again, or hangs; it is tried again (503).
            EngineClosedError: The engine is closing (503).
        """
        self._check_open()
        request.check()
        self._check_answering(request.model)
        return self._submissions.open(request)

    def snapshot(self) -> EngineSnapshot:
        """The engine as of its last step, and the requests that have come since."""
        seen = self._worker.snapshot
        hang = self._watch.hang
        slots = tuple(self._as_of_now(slot, hang) for slot in seen.slots)
        problem = seen.problem if hang is None else hang.reason
        return replace(seen, slots=slots, problem=problem)

    def _as_of_now(self, slot: SlotSnapshot, hang: Hang | None) -> SlotSnapshot:
        waiting = max(0, self._submissions.count(slot.model) - slot.running)
        if slot.state == "running" and hang is not None:
            return replace(slot, state="crashed", running=0, waiting=0, problem=hang.reason)
        problem = self._residency.reader_problem(slot.model)
        if problem is not None:
            return replace(slot, state="crashed", waiting=waiting, problem=problem)
        return replace(slot, waiting=waiting)

    # ------------------------------------------------------------ from the thread

    def _run(self) -> None:
        """The thread's target: the worker, and the news of its end."""
        cause: BaseException | None = None
        try:
            self._worker.run()
        except BaseException as error:  # noqa: BLE001 - told to everyone who waits, in `_on_end`
            cause = error
        # A loop that is closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._on_end, cause)

    def _post(self, updates: list[Update]) -> bool:
        if self._loop is None:  # pragma: no cover - the thread starts after the loop is known
            return False
        try:
            self._loop.call_soon_threadsafe(self._deliver, updates)
        except RuntimeError:
            return False  # the loop is closed: nobody listens any more
        return True

    def _deliver(self, updates: list[Update]) -> None:
        for update in updates:
            match update:
                case Loaded(model=model, reader=reader):
                    self._residency.came(model, reader)
                    self._submissions.came(model.model_id)
                case LoadFailed(model_id=model_id, error=error):
                    self._residency.failed(model_id, error)
                    self._submissions.load_failed(model_id, error)
                case Unloaded(model_id=model_id):
                    self._residency.left(model_id)
                    self._submissions.left(model_id)
                case Displaced(key=key):
                    self._submissions.displaced(key)
                case Recovered():
                    self._watch.back()
                case _:
                    self._submissions.apply(update)

    def _on_hang(self, hang: Hang) -> None:
        """Tell everyone who waits, and the thread, should it ever come back."""
        _log.error("engine gets nowhere", model=hang.model, seconds=round(hang.seconds))
        error = OutOfServiceError(hang.model, hang.reason)
        self._fail_all(error)
        self._worker.inbox.put(Reset(hang.model, hang.reason))

    def _on_look(self) -> None:
        """Give up what waits for a model, or for a tokenizer, that takes too long."""
        self._submissions.expire()
        self._residency.interrupt_readers()
        for model, problem in self._residency.reader_problems():
            self._submissions.fail_unprepared(model, OutOfServiceError(model, problem))

    def _fail_all(self, error: EngineError) -> None:
        self._submissions.fail_all(error)
        self._residency.fail_all(error)

    def _on_end(self, cause: BaseException | None) -> None:
        error: EngineError = EngineClosedError()
        if cause is not None:
            _log.error("engine thread ended", cause=type(cause).__name__)
            error = GenerationFailedError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "the engine stopped working",
                why=type(cause).__name__,
                next_step="restart the provider",
            )
            error.__cause__ = cause
        self._closed = True
        self._watch.stop()
        self._fail_all(error)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    # ------------------------------------------------------------ checks

    def _check_open(self) -> None:
        if self._closed or self._thread is None:
            raise EngineClosedError

    def _check_answering(self, model: str) -> None:
        """Refuse at once what the engine's thread would refuse."""
        self._check_hang(model)
        slot = self._worker.snapshot.slot(model)
        problem = None if slot is None else slot.problem
        problem = problem or self._residency.reader_problem(model)
        if problem is not None:
            raise OutOfServiceError(model, problem)

    def _check_hang(self, model: str) -> None:
        """Refuse at once what the engine's thread would never hear of."""
        if self._watch.hang is not None:
            raise OutOfServiceError(model, self._watch.hang.reason)
