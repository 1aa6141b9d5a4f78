"""The front of the engine, on the event loop: load, submit, look, close. Free of MLX."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from darkbloom_provider import logs
from darkbloom_provider.engine import runtime
from darkbloom_provider.engine.compiling import Compiling
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    EngineError,
    GenerationFailedError,
    ModelNotLoadedError,
    OutOfServiceError,
    OverloadedError,
)
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.requests import (
    EngineSettings,
    EngineSnapshot,
    GenerationRequest,
    LoadedModel,
)
from darkbloom_provider.engine.updates import (
    Cancel,
    Close,
    Failed,
    Finished,
    GoOn,
    Hold,
    Load,
    Loaded,
    LoadFailed,
    Recovered,
    Released,
    RequestUpdate,
    Reset,
    Submit,
    Unload,
    Unloaded,
    Update,
)
from darkbloom_provider.engine.watch import Hang, Watch
from darkbloom_provider.engine.worker import Worker
from darkbloom_provider.errors import DarkbloomError

if TYPE_CHECKING:
    from darkbloom_provider.engine.structure import Grammars, Guide

Result = TypeVar("Result")

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
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._closed = False
        self._keys = itertools.count()
        self._open: dict[int, tuple[str, Generation]] = {}
        self._open_by_model: Counter[str] = Counter()
        self._models: dict[str, LoadedModel | None] = {}
        self._grammars: dict[str, Grammars] = {}
        self._compiling = Compiling()
        self._loads: dict[str, asyncio.Future[LoadedModel]] = {}
        self._unloads: dict[str, asyncio.Future[None]] = {}

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
        await self._compiling.aclose()

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
        loaded = self._models.get(model_id)
        if loaded is not None:
            return loaded
        pending = self._loads.get(model_id)
        if pending is None:
            pending = asyncio.get_running_loop().create_future()
            # A caller that was cancelled leaves the outcome to nobody; that is no leak.
            pending.add_done_callback(_retrieved)
            self._loads[model_id] = pending
            self._models.setdefault(model_id, None)
            self._worker.inbox.put(Load(model_id, path, make_room))
        return await asyncio.shield(pending)

    async def unload(self, model_id: str) -> None:
        """Free a model's memory. Requests still on it fail with `ModelNotLoadedError`.

        Raises:
            EngineClosedError: The engine is closing.
        """
        self._check_open()
        if self._models.get(model_id) is None:
            return
        self._check_hang(model_id)
        self._models[model_id] = None
        pending = self._unloads.get(model_id)
        if pending is None:
            pending = asyncio.get_running_loop().create_future()
            pending.add_done_callback(_retrieved)
            self._unloads[model_id] = pending
            self._worker.inbox.put(Unload(model_id))
        await asyncio.shield(pending)

    def loaded(self, model_id: str) -> LoadedModel | None:
        """What was learnt of a model in memory; None if it is not there."""
        return self._models.get(model_id)

    # ------------------------------------------------------------ requests

    def submit(self, request: GenerationRequest) -> Generation:
        """Start a completion. What needs the tokenizer to be found out is raised by iterating.

        Raises:
            InvalidGenerationError: A parameter makes no sense (400).
            ModelNotLoadedError: The model was never loaded here (404) or is not in memory (503).
            OverloadedError: The model's bounded queue is full (503).
            OutOfServiceError: It failed again and again, or hangs; it is tried again (503).
            EngineClosedError: The engine is closing (503).
        """
        self._check_open()
        request.check()
        self._check_model(request.model)
        self._check_answering(request.model)
        running, waiting = self._settings.max_running, self._settings.max_waiting
        if self._open_by_model[request.model] >= running + waiting:
            raise OverloadedError(request.model, waiting)
        key = next(self._keys)
        inbox = self._worker.inbox
        generation = Generation(
            request.request_id,
            lambda: inbox.put(Cancel(key)),
            lambda held: inbox.put(Hold(key) if held else GoOn(key)),
        )
        self._open[key] = (request.model, generation)
        self._open_by_model[request.model] += 1
        if request.structure is None:
            self._worker.inbox.put(Submit(key, request))
        else:
            compiled = functools.partial(self._compiled, key, request)
            self._compiling.start(self._grammars[request.model], request.structure, compiled)
        return generation

    def _compiled(self, key: int, request: GenerationRequest, outcome: Guide | EngineError) -> None:
        held = self._open.get(key)
        if held is None:
            return
        if isinstance(outcome, EngineError):
            self._deliver_to_request(Failed(key, outcome))
        elif held[1].ended:  # cancelled meanwhile: the engine's thread never hears of it
            self._deliver_to_request(Released(key))
        else:
            self._worker.inbox.put(Submit(key, request, outcome))

    def snapshot(self) -> EngineSnapshot:
        """The engine as of its last step, and the requests that have come since."""
        seen = self._worker.snapshot
        slots = tuple(
            replace(slot, waiting=max(0, self._open_by_model[slot.model] - slot.running))
            for slot in seen.slots
        )
        hang = self._watch.hang
        if hang is not None:
            slots = tuple(
                replace(slot, state="crashed", running=0, waiting=0, problem=hang.reason)
                if slot.state == "running"
                else slot
                for slot in slots
            )
            seen = replace(seen, problem=hang.reason)
        return replace(seen, slots=slots)

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
                case Loaded(model=model, grammars=grammars):
                    self._grammars[model.model_id] = grammars
                    self._models[model.model_id] = model
                    _settle(self._loads.pop(model.model_id, None), model)
                case LoadFailed(model_id=model_id, error=error):
                    _fail(self._loads.pop(model_id, None), error)
                case Unloaded(model_id=model_id):
                    # Not always asked for: idle models give way to work that needs their memory.
                    self._models[model_id] = None
                    _settle(self._unloads.pop(model_id, None), None)
                case Recovered():
                    self._watch.back()
                case _:
                    self._deliver_to_request(update)

    def _deliver_to_request(self, update: RequestUpdate) -> None:
        held = self._open.get(update.key)
        if held is None:
            return
        model, generation = held
        if isinstance(update, Finished | Failed | Released):
            del self._open[update.key]
            self._open_by_model[model] -= 1
        generation.apply(update)

    def _on_hang(self, hang: Hang) -> None:
        """Tell everyone who waits, and the thread, should it ever come back."""
        _log.error("engine gets nowhere", model=hang.model, seconds=round(hang.seconds))
        error = OutOfServiceError(hang.model, hang.reason)
        self._fail_all(error)
        self._worker.inbox.put(Reset(hang.model, hang.reason))

    def _fail_all(self, error: EngineError) -> None:
        for key in list(self._open):
            self._deliver_to_request(Failed(key, error))
        for load in self._loads.values():
            _fail(load, error)
        for unload in self._unloads.values():
            _fail(unload, error)
        self._loads.clear()
        self._unloads.clear()

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
        if slot is not None and slot.problem is not None:
            raise OutOfServiceError(model, slot.problem)

    def _check_hang(self, model: str) -> None:
        """Refuse at once what the engine's thread would never hear of."""
        if self._watch.hang is not None:
            raise OutOfServiceError(model, self._watch.hang.reason)

    def _check_model(self, model: str) -> None:
        if model not in self._models:
            raise ModelNotLoadedError(
                HTTPStatus.NOT_FOUND,
                f"this machine does not serve {model}",
                next_step="run: darkbloom models list",
            )
        if self._models[model] is None:
            raise ModelNotLoadedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{model} is not in memory on this machine",
                next_step="try again in a moment",
            )


def _settle(future: asyncio.Future[Result] | None, result: Result) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Result] | None, error: DarkbloomError) -> None:
    if future is not None and not future.done():
        future.set_exception(error)


def _retrieved(future: asyncio.Future[Result]) -> None:
    if not future.cancelled():
        future.exception()
