"""Which models are in memory, on their way in or on their way out, as the event loop knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from darkbloom_provider.engine.errors import EngineError, ModelNotLoadedError
from darkbloom_provider.engine.preparing import Preparing, PromptReader
from darkbloom_provider.engine.requests import LoadedModel
from darkbloom_provider.engine.side_thread import SideThread
from darkbloom_provider.engine.updates import Command, Load, Unload
from darkbloom_provider.errors import DarkbloomError, ModelError

Result = TypeVar("Result")

_GRACE = 0.2
"""The share of the limit in which an interrupted reader may come back: two looks of the watch."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in memory."""

    model: LoadedModel
    preparing: Preparing


class Residency:
    """Belongs to the event loop's thread.

    Args:
        send: To the engine's thread.
        clock: Monotonic seconds.
        stall_limit_s: Seconds for one prompt after which its tokenizer counts as stuck.
    """

    def __init__(
        self,
        send: Callable[[Command], None],
        *,
        clock: Callable[[], float],
        stall_limit_s: float,
    ) -> None:
        self._send = send
        self._clock = clock
        self._stall_limit_s = stall_limit_s
        self._grace_s = stall_limit_s * _GRACE
        self._residents: dict[str, Resident | None] = {}
        """None once a model was loaded, or was to be, and is not in memory."""
        self._paths: dict[str, Path] = {}
        """Where to find those that the engine may load again by itself."""
        self._loads: dict[str, asyncio.Future[LoadedModel]] = {}
        self._unloads: dict[str, asyncio.Future[None]] = {}
        self._compiling = SideThread("darkbloom-grammars", clock)
        self._ended: list[SideThread] = []

    # ------------------------------------------------------------ asked

    def loaded(self, model_id: str) -> LoadedModel | None:
        """What was learnt of a model in memory; None if it is not there."""
        resident = self._residents.get(model_id)
        return None if resident is None else resident.model

    def preparing(self, model_id: str) -> Preparing | None:
        """What prepares requests to a model; None while it is on its way into memory.

        A model that had to make room for others is loaded again.

        Raises:
            ModelNotLoadedError: It was never loaded here (404), or was unloaded or could not be
                loaded (503).
        """
        if model_id not in self._residents:
            raise ModelNotLoadedError(
                HTTPStatus.NOT_FOUND,
                f"this machine does not serve {model_id}",
                next_step="run: darkbloom models list",
            )
        resident = self._residents[model_id]
        if resident is not None:
            return resident.preparing
        if model_id not in self._loads:
            if model_id not in self._paths:
                raise not_in_memory(model_id)
            self.load(model_id, self._paths[model_id])
        return None

    def reader_problem(self, model_id: str) -> str | None:
        """What keeps prompts from being read, in one sentence; None if nothing does."""
        resident = self._residents.get(model_id)
        if resident is None:
            return None
        breaker, since = resident.preparing.breaker, resident.preparing.reading.busy_since
        if breaker.probe_in(self._clock()):
            return f"{model_id}: {breaker.problem}"
        if since is None or self._clock() - since <= self._stall_limit_s + self._grace_s:
            return None
        return f"{model_id} has been reading one prompt for {self._clock() - since:.0f} s"

    def interrupt_readers(self) -> None:
        """Give up prompts that have been read for too long, so that the next have their turn.

        If that is not possible, the model has a `reader_problem` soon.
        """
        for resident in self._residents.values():
            reading = None if resident is None else resident.preparing.reading
            since = None if reading is None else reading.busy_since
            if reading and since is not None and self._clock() - since > self._stall_limit_s:
                reading.interrupt()

    def reader_problems(self) -> list[tuple[str, str]]:
        """The models that cannot read prompts, and why."""
        found = [(model_id, self.reader_problem(model_id)) for model_id in self._residents]
        return [(model_id, problem) for model_id, problem in found if problem is not None]

    # ------------------------------------------------------------ told to

    def load(
        self, model_id: str, path: Path, *, make_room: bool = True
    ) -> asyncio.Future[LoadedModel]:
        """Have a model loaded, unless it is already or will be."""
        pending = self._loads.get(model_id)
        if pending is None:
            pending = asyncio.get_running_loop().create_future()
            # A caller that was cancelled leaves the outcome to nobody; that is no leak.
            pending.add_done_callback(_retrieved)
            resident = self._residents.setdefault(model_id, None)
            if resident is not None:
                pending.set_result(resident.model)
                return pending
            self._loads[model_id] = pending
            self._paths[model_id] = path
            self._send(Load(model_id, path, make_room))
        return pending

    def unload(self, model_id: str) -> asyncio.Future[None] | None:
        """Have a model unloaded; None if it is not in memory."""
        if model_id not in self._loads:
            self._paths.pop(model_id, None)
        if self._residents.get(model_id) is None:
            return None
        self._leave(model_id)
        pending = self._unloads.get(model_id)
        if pending is None:
            pending = asyncio.get_running_loop().create_future()
            pending.add_done_callback(_retrieved)
            self._unloads[model_id] = pending
            self._send(Unload(model_id))
        return pending

    # ------------------------------------------------------------ told by the engine's thread

    def came(self, model: LoadedModel, reader: PromptReader) -> None:
        """A model is in memory."""
        reading = SideThread(f"darkbloom-prompts {model.model_id}", self._clock)
        self._residents[model.model_id] = Resident(
            model, Preparing(reader, reading, self._compiling, self._clock)
        )
        _settle(self._loads.pop(model.model_id, None), model)

    def failed(self, model_id: str, error: ModelError) -> None:
        """A model could not be loaded."""
        self._paths.pop(model_id, None)
        _fail(self._loads.pop(model_id, None), error)

    def left(self, model_id: str) -> None:
        """A model is out of memory; not always asked for, it may have had to make room."""
        self._leave(model_id)
        _settle(self._unloads.pop(model_id, None), None)

    def fail_all(self, error: EngineError) -> None:
        """Whoever waits is told `error`."""
        for load in self._loads.values():
            _fail(load, error)
        for unload in self._unloads.values():
            _fail(unload, error)
        self._loads.clear()
        self._unloads.clear()

    async def aclose(self) -> None:
        """End the threads."""
        for model_id in self._residents:
            self._leave(model_id)
        for thread in (*self._ended, self._compiling):
            await thread.aclose()
        self._ended.clear()

    def _leave(self, model_id: str) -> None:
        resident = self._residents.get(model_id)
        if resident is not None:
            self._residents[model_id] = None
            thread = resident.preparing.reading
            thread.close()
            self._ended = [thread, *(one for one in self._ended if one.alive)]


def not_in_memory(model_id: str) -> ModelNotLoadedError:
    """Told to who asks for a model that is not there, or not yet."""
    return ModelNotLoadedError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{model_id} is not in memory on this machine",
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
