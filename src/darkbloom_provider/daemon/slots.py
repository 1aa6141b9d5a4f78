"""The models this machine serves: which ones, and how far each one's load has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from darkbloom_provider import logs
from darkbloom_provider.config import BackendSection
from darkbloom_provider.control.models import ModelState
from darkbloom_provider.engine.errors import NoRoomError
from darkbloom_provider.errors import ConfigError, DarkbloomError, ModelError
from darkbloom_provider.models.store import InstalledModel
from darkbloom_provider.protocol.messages import ModelInfo

IMPORT_HINT = "import one: `darkbloom models import PATH.gguf`"

GB = 10**9
_SERVABLE = frozenset({"ready", "idle", "loading"})

_log = logs.get("daemon.slots")


class Loader(Protocol):
    """What loading needs of the engine."""

    async def load(self, model_id: str, path: Path, *, make_room: bool = True) -> object:
        """Bring a model into memory, or raise a `DarkbloomError`.

        With `make_room`, models that nobody uses may have to go for it.
        """
        ...

    def loaded(self, model_id: str) -> object | None:
        """What is known of a model in memory; None if it is not there."""
        ...

    async def unload(self, model_id: str) -> None:
        """Free a model's memory."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """What to serve, and what was left out with the reason."""

    models: tuple[InstalledModel, ...]
    left_out: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    """Ids of those to load at the start; empty means as many as fit."""


def choose(
    installed: Sequence[InstalledModel],
    settings: BackendSection,
    *,
    named: Sequence[str] = (),
    all_models: bool = False,
) -> Choice:
    """Which of the installed models to serve.

    Models named on the command line win over the settings; without either, or with `all_models`,
    it is every installed one. No more than `max_model_slots` are served.

    Raises:
        ModelError: None is installed, or one that was asked for is not.
        ConfigError: `preload_models` names one that is not served, and the command line names none.
    """
    by_id = {model.id: model for model in installed}
    if not by_id:
        raise ModelError("No models are installed on this machine", next_step=IMPORT_HINT)
    wanted = list(dict.fromkeys(named)) or ([] if all_models else list(settings.models))
    for model_id in wanted:
        if model_id not in by_id:
            raise ModelError(
                f"The model {model_id} is not installed",
                why=f"installed: {', '.join(by_id)}",
                next_step=f"{IMPORT_HINT}, or name one of those",
            )
    models = [by_id[model_id] for model_id in wanted or by_id]
    room = settings.max_model_slots
    served = tuple(model.id for model in models[:room])
    return Choice(
        tuple(models[:room]),
        tuple(f"{model.id} is not served: max_model_slots is {room}" for model in models[room:]),
        _preload(settings, served, narrowed=bool(named)),
    )


def _preload(settings: BackendSection, served: Sequence[str], *, narrowed: bool) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(settings.preload_models))
    for model_id in wanted:
        if model_id not in served and not narrowed:
            raise ConfigError(
                f"backend.preload_models names {model_id}, which is not served",
                why=f"served: {', '.join(served)}",
                next_step="take it out, or serve it: [backend] enabled_models, max_model_slots",
            )
    return tuple(model_id for model_id in wanted if model_id in served)


@dataclass(frozen=True, slots=True)
class Slot:
    """One model to serve, as of now."""

    model: InstalledModel
    state: ModelState = "waiting"
    detail: str | None = None
    used_at: float = 0.0
    """When a request last asked for it, or when it was loaded; seconds of the clock."""


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A model that could not be loaded."""

    model: str
    message: str
    at_clock_s: float
    """When, in seconds of the clock."""


class ModelSlots:
    """Loads the chosen models one after the other, unloads idle ones, knows which can answer.

    As many are warm at once as fit; the others take the place of idle ones when they are asked for.

    Args:
        models: Those to serve.
        clock: Monotonic seconds.
        preload: Ids of those to load at the start; empty means as many as fit.
    """

    def __init__(
        self,
        models: Sequence[InstalledModel],
        clock: Callable[[], float],
        preload: Sequence[str] = (),
    ) -> None:
        self._preload = tuple(preload)
        self._slots = {model.id: Slot(model) for model in models}
        self._clock = clock
        self._engine: Loader | None = None
        self.last_failure: LoadFailure | None = None
        self._leaving: set[str] = set()
        """Ids whose weights in memory are out of date: unloaded once nobody uses them."""

    def snapshot(self) -> tuple[Slot, ...]:
        """Every slot as of now."""
        self._notice_evictions()
        return tuple(self._slots.values())

    def warm(self) -> tuple[str, ...]:
        """Ids of the models in memory, the one used last first."""
        slots = sorted(self.snapshot(), key=lambda slot: slot.used_at, reverse=True)
        return tuple(slot.model.id for slot in slots if slot.state == "ready")

    def servable(self) -> tuple[str, ...]:
        """Ids of the models that can answer, if need be after loading them."""
        return tuple(i for i, slot in self._slots.items() if slot.state in _SERVABLE)

    def infos(self) -> tuple[ModelInfo, ...]:
        """The models that can answer, as they are registered."""
        models = (self._slots[model_id].model for model_id in self.servable())
        return tuple(
            ModelInfo(
                id=model.id,
                size_bytes=model.size_bytes,
                model_type=model.model_type,
                quantization=model.quantization,
            )
            for model in models
        )

    async def load_all(self, engine: Loader) -> None:
        """Load the models for the start; one that fails does not keep the others from serving.

        Raises:
            DarkbloomError: None could be loaded; the first one's reason.
        """
        self._engine = engine
        failures = await self.load_waiting(engine)
        if failures and not self.servable():
            raise failures[0]

    async def load_waiting(self, engine: Loader) -> list[DarkbloomError]:
        """Load every model that was not tried yet, if it fits; why those that failed did."""
        failures: list[DarkbloomError] = []
        at_start = self._preload or tuple(self._slots)
        for model_id, slot in self._slots.items():
            if slot.state == "waiting" and model_id not in at_start:
                self._set(model_id, "idle", "loaded when it is asked for")
        for model_id in at_start:
            if self._slots[model_id].state != "waiting":
                continue
            try:
                await self._load(engine, model_id, make_room=False)
            except NoRoomError as error:
                failures.append(error)
                if error.ever:
                    self._set(model_id, "idle", f"loaded when it is asked for: {error.why}")
                else:
                    self._failed(model_id, error)
            except DarkbloomError as error:
                failures.append(error)
                self._failed(model_id, error)
        return failures

    def change_to(self, models: Sequence[InstalledModel], preload: Sequence[str] = ()) -> bool:
        """Serve these from now on; False if nothing changes. Touches nothing that runs.

        New ones wait for `load_waiting`. What is in memory of those that left or were replaced
        on the disk goes with `unload_leaving`.
        """
        before = self._slots
        self._preload = tuple(preload)
        if [slot.model for slot in before.values()] == list(models):
            return False
        self._slots = {model.id: _renewed(before.get(model.id), model) for model in models}
        for model_id, slot in before.items():
            kept = self._slots.get(model_id)
            if kept is None or kept.model != slot.model:
                self._leaving.add(model_id)
        return True

    async def unload_leaving(
        self, engine: Loader, in_flight: Callable[[], Mapping[str, int]]
    ) -> int:
        """Unload weights that are out of date and that no request uses; how many there were."""
        unloaded = 0
        for model_id in sorted(self._leaving):
            if in_flight().get(model_id):
                continue
            self._leaving.discard(model_id)
            if engine.loaded(model_id) is None:
                continue
            # Before the first wait: a request that comes meanwhile loads it again, in order.
            self._set(model_id, "idle")
            try:
                await engine.unload(model_id)
            except DarkbloomError as error:
                self._leaving.add(model_id)
                _log.warning("model not unloaded yet", model=model_id, why=str(error))
            else:
                _log.info("model unloaded, replaced or removed", model=model_id)
                unloaded += 1
        return unloaded

    async def prepare(self, engine: Loader, model_id: str) -> None:
        """Note that a servable model is asked for, and have it in memory on return.

        Raises:
            DarkbloomError: It cannot be loaded again; the next request tries anew.
        """
        self._notice_evictions()
        slot = self._slots.get(model_id)
        if slot is None:
            raise ModelError(f"The model {model_id} is not served any more")
        self._slots[model_id] = replace(slot, used_at=self._clock())
        if slot.state == "ready":
            return
        try:
            await self._load(engine, model_id)
        except DarkbloomError as error:
            self._failed(model_id, error)
            self._set(model_id, "idle", f"the last load failed: {error}")
            raise

    async def unload_idle(
        self, engine: Loader, idle_s: float, in_flight: Callable[[], Mapping[str, int]]
    ) -> int:
        """Unload every model that nobody has asked for in `idle_s` seconds; how many there were.

        One that the engine cannot let go of now, as while it hangs, stays ready for the next try.
        """
        unloaded = 0
        self._notice_evictions()
        for model_id, slot in list(self._slots.items()):
            unused_s = self._clock() - slot.used_at
            if slot.state != "ready" or unused_s < idle_s or in_flight().get(model_id):
                continue
            # Before the first wait: a request that comes meanwhile loads it again, in order.
            self._set(model_id, "idle")
            _log.info("unloading an idle model", model=model_id, unused_s=round(unused_s))
            try:
                await engine.unload(model_id)
            except DarkbloomError as error:
                _log.warning("model not unloaded yet", model=model_id, why=str(error))
                self._still_ready(engine, model_id)
            else:
                unloaded += 1
        return unloaded

    def _still_ready(self, engine: Loader, model_id: str) -> None:
        """An unload failed: the model is in memory as before, unless it was asked for meanwhile."""
        slot = self._slots.get(model_id)
        if slot is not None and slot.state == "idle" and engine.loaded(model_id) is not None:
            self._set(model_id, "ready")

    async def _load(self, engine: Loader, model_id: str, *, make_room: bool = True) -> None:
        model = self._slots[model_id].model
        self._set(model_id, "loading", f"reading {model.size_bytes / GB:.2f} GB of weights")
        try:
            await engine.load(model_id, model.path, make_room=make_room)
        except DarkbloomError as error:
            _log.error("model not loaded", model=model_id, why=str(error))
            raise
        _log.info("model loaded", model=model_id)
        now = self._slots.get(model_id)
        if now is None or now.model != model:  # replaced or removed while it was read
            self._leaving.add(model_id)
        if now is not None:
            self._slots[model_id] = replace(now, state="ready", detail=None, used_at=self._clock())

    def _notice_evictions(self) -> None:
        """The engine unloads idle models by itself when work would not fit otherwise."""
        if self._engine is None:
            return
        for model_id, slot in self._slots.items():
            if slot.state == "ready" and self._engine.loaded(model_id) is None:
                self._set(model_id, "idle", "made room for other work")
                _log.info("model unloaded to make room", model=model_id)

    def _failed(self, model_id: str, error: DarkbloomError) -> None:
        self._set(model_id, "failed", str(error))
        self.last_failure = LoadFailure(model_id, str(error), self._clock())

    def _set(self, model_id: str, state: ModelState, detail: str | None = None) -> None:
        if (slot := self._slots.get(model_id)) is not None:
            self._slots[model_id] = replace(slot, state=state, detail=detail)


def _renewed(slot: Slot | None, model: InstalledModel) -> Slot:
    """The slot of a model that is installed now, given the one it had before."""
    if slot is None or (slot.state == "failed" and slot.model != model):
        return Slot(model)
    return replace(slot, model=model)
