"""The requests that the engine has taken, from the moment they come until they are over.

A request waits here while its model is on its way into memory, then while it is prepared; then the
engine's thread has it. Their number is bounded, model by model.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus

from darkbloom_provider.engine.errors import (
    EngineError,
    LoadFailedError,
    ModelNotLoadedError,
    OverloadedError,
)
from darkbloom_provider.engine.generation import Generation
from darkbloom_provider.engine.preparing import Preparation, Prepared
from darkbloom_provider.engine.requests import EngineSettings, GenerationRequest
from darkbloom_provider.engine.residency import Residency
from darkbloom_provider.engine.updates import (
    Cancel,
    Command,
    Expect,
    Failed,
    Finished,
    GoOn,
    Hold,
    Released,
    RequestUpdate,
    Submit,
)
from darkbloom_provider.errors import ModelError


@dataclass(slots=True, eq=False)
class _Held:
    key: int
    request: GenerationRequest
    generation: Generation
    preparation: Preparation | None = None
    """While it is being prepared."""
    parked_at: float | None = None
    """Since when it waits for its model; seconds of the clock."""

    @property
    def handed_over(self) -> bool:
        """Whether the engine's thread has it."""
        return self.preparation is None and self.parked_at is None


class Submissions:
    """Belongs to the event loop's thread.

    Args:
        residency: Which models are in memory; loads those again that had to make room.
        send: To the engine's thread.
        settings: Bounds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        residency: Residency,
        send: Callable[[Command], None],
        *,
        settings: EngineSettings,
        clock: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._send = send
        self._settings = settings
        self._clock = clock
        self._keys = itertools.count()
        self._held: dict[int, _Held] = {}
        self._by_model: Counter[str] = Counter()

    def count(self, model: str) -> int:
        """Requests to a model that are not over."""
        return self._by_model[model]

    def open(self, request: GenerationRequest) -> Generation:
        """Take a checked request.

        Raises:
            ModelNotLoadedError: See `Residency.preparing`.
            OverloadedError: The bounded queue of its model is full.
        """
        self._residency.preparing(request.model)
        running, waiting = self._settings.max_running, self._settings.max_waiting
        if self._by_model[request.model] >= running + waiting:
            raise OverloadedError(request.model, waiting)
        key = next(self._keys)
        generation = Generation(
            request.request_id,
            lambda: self._cancel(key),
            lambda held: self._send(Hold(key) if held else GoOn(key)),
        )
        held = self._held[key] = _Held(key, request, generation)
        self._by_model[request.model] += 1
        self._send(Expect(key, request.model))
        self._place(held)
        return generation

    # ------------------------------------------------------------ what happens to models

    def came(self, model: str) -> None:
        """A model is in memory: what is parked for it goes on."""
        for held in self._of(model):
            if held.parked_at is not None:
                self._place(held)

    def load_failed(self, model: str, error: ModelError) -> None:
        """A model will not come: what is parked for it fails."""
        for held in self._of(model):
            if held.parked_at is not None:
                self._fail(held, LoadFailedError(model, error))

    def left(self, model: str) -> None:
        """A model is out of memory: what is being prepared for it has to wait for it."""
        for held in self._of(model):
            if held.preparation is not None and held.preparation.cancel():
                self._place(held)

    def displaced(self, key: int) -> None:
        """The engine's thread had no such model any more."""
        held = self._held.get(key)
        if held is None:
            return
        if held.generation.ended:
            self.apply(Released(key))
            return
        self._send(Expect(key, held.request.model))
        self._place(held)

    # ------------------------------------------------------------ what happens to requests

    def apply(self, update: RequestUpdate) -> None:
        """News of a request, from the engine's thread or from here."""
        held = self._held.get(update.key)
        if held is None:
            return
        if isinstance(update, Finished | Failed | Released):
            del self._held[update.key]
            self._by_model[held.request.model] -= 1
        held.generation.apply(update)

    def fail_unprepared(self, model: str, error: EngineError) -> None:
        """Whatever is being prepared for a model fails."""
        for held in self._of(model):
            if held.preparation is not None:
                held.preparation.cancel()
                self._fail(held, error)

    def fail_all(self, error: EngineError) -> None:
        """Everything fails."""
        for held in tuple(self._held.values()):
            if held.preparation is not None:
                held.preparation.cancel()
            self.apply(Failed(held.key, error))

    def expire(self) -> None:
        """Fail what has been parked for too long."""
        limit_s = self._settings.load_wait_s
        for held in tuple(self._held.values()):
            if held.parked_at is not None and self._clock() - held.parked_at > limit_s:
                self._fail(
                    held,
                    ModelNotLoadedError(
                        HTTPStatus.SERVICE_UNAVAILABLE,
                        f"{held.request.model} did not come into memory in time",
                        why=f"its load takes longer than {limit_s:.0f} s",
                        next_step="try again later",
                    ),
                )

    # ------------------------------------------------------------ one request

    def _place(self, held: _Held) -> None:
        """Prepare a request, or park it until its model is there."""
        held.preparation, parked_at, held.parked_at = None, held.parked_at, None
        try:
            preparing = self._residency.preparing(held.request.model)
        except ModelNotLoadedError as error:
            self._fail(held, error)
            return
        if preparing is None:
            held.parked_at = self._clock() if parked_at is None else parked_at
        else:
            done = functools.partial(self._prepared, held)
            held.preparation = preparing.start(held.request, done)

    def _prepared(self, held: _Held, outcome: Prepared | EngineError) -> None:
        if held.key not in self._held:  # failed meanwhile
            return
        held.preparation = None
        if held.generation.ended:  # cancelled meanwhile: the batch never hears of it
            self._send(Cancel(held.key))
            self.apply(Released(held.key))
        elif isinstance(outcome, EngineError):
            self._fail(held, outcome)
        else:
            self._send(Submit(held.key, held.request, outcome.prompt, outcome.guide))

    def _cancel(self, key: int) -> None:
        held = self._held.get(key)
        if held is None:
            return
        if held.handed_over:
            self._send(Cancel(key))
        elif held.preparation is None or held.preparation.cancel():
            self._send(Cancel(key))
            self.apply(Released(key))

    def _fail(self, held: _Held, error: EngineError) -> None:
        """Fail a request that the batch does not have."""
        self._send(Cancel(held.key))
        self.apply(Failed(held.key, error))

    def _of(self, model: str) -> Iterable[_Held]:
        return tuple(held for held in self._held.values() if held.request.model == model)
