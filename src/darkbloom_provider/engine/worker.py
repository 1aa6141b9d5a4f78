"""The one thread that touches MLX: it loads, steps, frees, and says what came of it.

In come commands through a thread-safe queue, drained before every step. Out go batches of plain
values, one hand-over a step for all requests together.
"""

from __future__ import annotations

import gc
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, MutableMapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from darkbloom_provider.engine import runtime
from darkbloom_provider.engine.admission import Limits
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    EngineError,
    ModelNotLoadedError,
    NoRoomError,
)
from darkbloom_provider.engine.ledger import GB, Ledger
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import (
    EngineSettings,
    EngineSnapshot,
    LoadedModel,
    MemorySnapshot,
    SlotSnapshot,
    SlotState,
)
from darkbloom_provider.engine.updates import (
    Cancel,
    Close,
    Command,
    Failed,
    Finished,
    GoOn,
    Hold,
    Load,
    Loaded,
    LoadFailed,
    Recovered,
    Released,
    Reset,
    Submit,
    Unload,
    Unloaded,
    Update,
)
from darkbloom_provider.engine.watch import Pulse
from darkbloom_provider.errors import ModelError
from darkbloom_provider.models.memory import measure

if TYPE_CHECKING:
    from darkbloom_provider.engine.batch import Batch
    from darkbloom_provider.engine.loading import Weights
    from darkbloom_provider.engine.sampling import Samplers

_BLOCKED_S = 0.05
"""How often requests are let in, if there is room, behind others whose readers are far behind."""
_POOL_SHARE = 16
"""One part in so many of the ceiling may be memory that MLX keeps for its next arrays."""


@dataclass(slots=True)
class _Loading:
    """A model on its way into memory."""

    model_id: str
    steps: Generator[None, None, Weights]
    began: float


class Worker:
    """Runs in the engine's thread. Only `inbox` and `snapshot` are touched from outside.

    Args:
        settings: Bounds.
        entropy: Random numbers of 64 bits for unseeded sampling.
        post: Hands updates to the event loop; False when there is no loop any more.
        environ: The process's environment, for the libraries (`runtime.prepare`).
        scratch: A private directory for their temporary files; None leaves the system's.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        settings: EngineSettings,
        entropy: Callable[[], int],
        post: Callable[[list[Update]], bool],
        environ: MutableMapping[str, str],
        scratch: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        """Bounded by what the front lets in: open requests and one cancellation for each."""
        self.snapshot = EngineSnapshot()
        """As of the last step. Replaced whole, never changed."""
        self.pulse = Pulse()
        self._progress = 0
        self._settings = settings
        self._entropy = entropy
        self._post = post
        self._environ = environ
        self._scratch = scratch
        self._scratch_before = environ.get(runtime.SCRATCH_VARIABLE)
        self._clock = clock
        self._batches: dict[str, Batch] = {}
        self._states: dict[str, SlotState] = {}
        self._owner: dict[int, str] = {}
        self._loading: deque[_Loading] = deque()
        self._prompts = PromptCache(int(settings.prompt_cache_gb * GB))
        self._ledger = Ledger(self._prompts, _active_bytes, self._busy)
        self._library_limits: tuple[int, int] | None = None
        self._wired_before: int | None = None
        """What MLX's own limits were before ours."""
        self._samplers: Samplers | None = None
        self._runtime: runtime.Runtime | None = None
        self._steps = 0
        self._tokens_of_unloaded = 0
        self._closing = False

    def run(self) -> None:
        """The thread's whole life, until `Close` or until nobody listens any more."""
        try:
            while not self._closing:
                updates = self._take_commands()
                updates += self._load_step()
                self._beat()
                updates += self._decode_step()
                self._beat()
                updates += self._make_room(self._ledger.unwanted())
                self._forget_owners(updates)
                self._publish()
                if updates and not self._post(updates):
                    break
        finally:
            self._free_everything()

    # ------------------------------------------------------------ commands

    def _take_commands(self) -> list[Update]:
        updates: list[Update] = []
        idle = not self._loading and not any(batch.busy for batch in self._batches.values())
        try:
            command = self.inbox.get(block=idle, timeout=self._until_a_retry())
            while True:
                updates += self._obey(command)
                command = self.inbox.get_nowait()
        except queue.Empty:
            return updates

    def _until_a_retry(self) -> float | None:
        """Seconds until something is to be tried again that no command announces, if there is."""
        waits = [batch.probe_in for batch in self._batches.values()]
        if any(batch.blocked for batch in self._batches.values()):
            waits.append(_BLOCKED_S)
        return min((wait for wait in waits if wait is not None), default=None)

    def _beat(self) -> None:
        """Say how far the work is, for the watch."""
        model = next((name for name, batch in self._batches.items() if batch.busy), None)
        progress = sum(batch.progress for batch in self._batches.values())
        if model is None:
            self.pulse = Pulse()
        elif self.pulse.model is None or progress != self._progress:
            self.pulse = Pulse(model, self._clock())
        self._progress = progress

    def _obey(self, command: Command) -> list[Update]:
        updates: list[Update] = []
        match command:
            case Load():
                updates += self._begin_loading(command)
            case Unload(model_id=model_id):
                updates += self._unload(model_id)
            case Submit():
                updates += self._submit(command)
            case Cancel(key=key):
                if (batch := self._batch_of(key)) is not None:
                    updates += batch.cancel(key)
            case Hold(key=key) | GoOn(key=key):
                if (batch := self._batch_of(key)) is not None:
                    batch.hold(key, held=isinstance(command, Hold))
            case Reset(model=model, reason=reason):
                for name, batch in self._batches.items():
                    batch.reset(reason if name == model else None)
                self._owner.clear()
                updates.append(Recovered())
            case Close():
                self._closing = True
                updates += self._fail_everything(EngineClosedError())
        return updates

    def _batch_of(self, key: int) -> Batch | None:
        return self._batches.get(self._owner.get(key, ""))

    def _submit(self, command: Submit) -> list[Update]:
        model = command.request.model
        batch = self._batches.get(model)
        if batch is None:
            return [Failed(command.key, _gone(model))]
        self._owner[command.key] = model
        return list(batch.add(command.key, command.request, command.guide))

    # ------------------------------------------------------------ models

    def _begin_loading(self, command: Load) -> list[Update]:
        try:
            self._prepare()
        except (ImportError, OSError) as error:
            self._states[command.model_id] = "crashed"
            problem = ModelError(
                "MLX does not run on this machine",
                why=str(error),
                next_step="see which systems are supported in the README",
            )
            return [LoadFailed(command.model_id, problem)]
        from darkbloom_provider.engine.loading import load_steps  # noqa: PLC0415 - imports MLX

        try:
            for_it = self._ledger.load(
                command.model_id, measure(command.path), make_room=command.make_room
            )
        except NoRoomError as error:
            self._states[command.model_id] = "idle_shutdown" if error.ever else "crashed"
            return [LoadFailed(command.model_id, error)]
        except ModelError as error:
            self._states[command.model_id] = "crashed"
            return [LoadFailed(command.model_id, error)]
        updates = self._make_room(for_it)
        self._states[command.model_id] = "reloading"
        steps = load_steps(command.path, self._settings.load_step_bytes)
        self._loading.append(_Loading(command.model_id, steps, self._clock()))
        return updates

    def _prepare(self) -> None:
        if self._runtime is not None:
            return
        self._runtime = runtime.prepare(self._environ, self._scratch)
        from darkbloom_provider.engine.sampling import Samplers  # noqa: PLC0415 - imports MLX

        self._samplers = Samplers(self._entropy)
        self._set_limits(self._runtime)
        self._limit_wired(self._runtime)

    def _set_limits(self, facts: runtime.Runtime) -> None:
        settings = self._settings
        ceiling = runtime.ceiling(facts.recommended_bytes, settings.memory_ceiling_gb)
        self._ledger.limits = Limits(
            ceiling=ceiling,
            metal=facts.metal,
            piece_tokens=settings.prefill_step_idle,
            row_piece_tokens=settings.prefill_step_idle,
        )
        if ceiling is not None:
            import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

            # What arrays have freed and MLX keeps for the next counts as well.
            before = mx.set_memory_limit(ceiling), mx.set_cache_limit(ceiling // _POOL_SHARE)
            self._library_limits = self._library_limits or before

    def _load_step(self) -> list[Update]:
        """One piece of the first model in the line; streams of others go on in between."""
        if not self._loading:
            return []
        loading = self._loading[0]
        try:
            next(loading.steps)
        except StopIteration as done:
            self._loading.popleft()
            return self._install(loading, done.value)
        except ModelError as error:
            self._loading.popleft()
            self._ledger.unloaded(loading.model_id)
            self._states[loading.model_id] = "crashed"
            return [LoadFailed(loading.model_id, error)]
        return []

    def _install(self, loading: _Loading, weights: Weights) -> list[Update]:
        from darkbloom_provider.engine.batch import Batch  # noqa: PLC0415 - imports MLX
        from darkbloom_provider.engine.structure import Grammars  # noqa: PLC0415 - numpy

        if self._samplers is None:  # pragma: no cover - prepared before any load
            raise RuntimeError("the engine was not prepared")
        self._batches[loading.model_id] = Batch(
            weights,
            settings=self._settings,
            samplers=self._samplers,
            cache=self._prompts,
            memory=self._ledger.of(loading.model_id),
        )
        self._ledger.loaded(loading.model_id, weights.weight_bytes)
        self._states[loading.model_id] = "running"
        model = LoadedModel(
            model_id=loading.model_id,
            context_length=weights.context_length,
            weight_bytes=weights.weight_bytes,
            load_seconds=self._clock() - loading.began,
            chat_template=weights.chat_template,
            special_tokens=weights.special_tokens,
        )
        return [Loaded(model, Grammars(weights.tokenizer, weights.vocabulary_size))]

    def _unload(self, model_id: str) -> list[Update]:
        batch = self._batches.pop(model_id, None)
        if batch is None:
            return [Unloaded(model_id)]
        updates: list[Update] = list(batch.fail_all(_gone(model_id)))
        self._tokens_of_unloaded += batch.tokens_generated
        del batch
        self._states[model_id] = "idle_shutdown"
        self._ledger.unloaded(model_id)
        self._collect()
        return [*updates, Unloaded(model_id)]

    def _make_room(self, idle: Iterable[str]) -> list[Update]:
        """Unload models that nobody uses, for the sake of work that waits."""
        updates: list[Update] = []
        for model_id in idle:
            updates += self._unload(model_id)
        return updates

    def _busy(self, model_id: str) -> bool:
        batch = self._batches.get(model_id)
        return batch is not None and batch.busy

    # ------------------------------------------------------------ steps

    def _decode_step(self) -> list[Update]:
        updates: list[Update] = []
        for model, batch in self._batches.items():
            before = self.pulse
            if batch.busy:
                self.pulse = replace(before, model=model)
            elif batch.blocked:  # nothing is owed, so nothing is late
                self.pulse = Pulse(model, self._clock())
            else:
                continue
            updates += batch.step()
            self.pulse = before
            self._steps += 1
        return updates

    def _forget_owners(self, updates: list[Update]) -> None:
        for update in updates:
            if isinstance(update, Finished | Failed | Released):
                self._owner.pop(update.key, None)

    def _publish(self) -> None:
        facts = self._runtime
        slots = []
        for model, state in self._states.items():
            batch = self._batches.get(model)
            slot = SlotSnapshot(model, state) if batch is None else batch.snapshot(model)
            slots.append(slot if slot.state == "crashed" else replace(slot, state=state))
        self.snapshot = EngineSnapshot(
            slots=tuple(slots),
            memory=MemorySnapshot() if facts is None else self._memory(metal=facts.metal),
            device="" if facts is None else facts.device,
            blas=None if facts is None else facts.blas,
            steps=self._steps,
            problem=next((f"{slot.model}: {slot.problem}" for slot in slots if slot.problem), None),
            tokens_generated=self._tokens_of_unloaded
            + sum(batch.tokens_generated for batch in self._batches.values()),
        )

    def _memory(self, *, metal: bool) -> MemorySnapshot:
        import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

        ceiling = self._ledger.limits.ceiling
        return MemorySnapshot(
            active_gb=mx.get_active_memory() / GB,
            peak_gb=mx.get_peak_memory() / GB,
            cache_gb=mx.get_cache_memory() / GB,
            prompt_cache_gb=self._prompts.nbytes / GB,
            ceiling_gb=None if ceiling is None else ceiling / GB,
            source="metal" if metal else "cpu",
        )

    def _limit_wired(self, facts: runtime.Runtime) -> None:
        limit = runtime.wired_limit(facts.recommended_bytes, self._settings.wired_limit_gb)
        if limit is not None:
            import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

            self._wired_before = mx.set_wired_limit(limit)

    # ------------------------------------------------------------ the end

    def _fail_everything(self, error: EngineError) -> list[Update]:
        updates: list[Update] = []
        for batch in self._batches.values():
            updates += batch.fail_all(error)
        return updates

    def _free_everything(self) -> None:
        for loading in self._loading:
            loading.steps.close()
        self._loading.clear()
        self._batches.clear()
        self._prompts.shrink(0)
        self._samplers = None
        if self._runtime is not None:
            if self._scratch is not None:
                runtime.restore_scratch(self._environ, self._scratch_before)
            self._collect()
            import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

            if self._library_limits is not None:
                mx.set_memory_limit(self._library_limits[0])
                mx.set_cache_limit(self._library_limits[1])
            if self._wired_before is not None:
                mx.set_wired_limit(self._wired_before)
            mx.clear_streams()

    def _collect(self) -> None:
        import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

        gc.collect()
        mx.clear_cache()


def _active_bytes() -> int:
    import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

    return mx.get_active_memory()


def _gone(model: str) -> ModelNotLoadedError:
    return ModelNotLoadedError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{model} is not in memory on this machine",
        next_step="try again in a moment",
    )
