"""The one thread that touches MLX: it loads, steps, frees, and says what came of it.

In come commands through a thread-safe queue, drained before every step. Out go batches of plain
values, one hand-over a step for all requests together.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from darkbloom_provider.engine import runtime
from darkbloom_provider.engine.admission import Limits
from darkbloom_provider.engine.device_memory import DeviceMemory
from darkbloom_provider.engine.errors import (
    EngineClosedError,
    EngineError,
    NoRoomError,
)
from darkbloom_provider.engine.ledger import GB, Ledger
from darkbloom_provider.engine.loads import Loads, Read
from darkbloom_provider.engine.preparing import prompt_reader
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import (
    EngineSettings,
    EngineSnapshot,
    LoadedModel,
    MemorySnapshot,
    SlotSnapshot,
    SlotState,
)
from darkbloom_provider.engine.residency import not_in_memory
from darkbloom_provider.engine.updates import (
    Cancel,
    Close,
    Command,
    Displaced,
    Expect,
    Failed,
    Finished,
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
        """Bounded by what the front lets in: a few commands for each open request."""
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
        self._expected: dict[int, str] = {}
        """The model of each request that is on its way here."""
        self._loads = Loads(settings.load_step_bytes, clock)
        self._prompts = PromptCache(int(settings.prompt_cache_gb * GB))
        self._memory = DeviceMemory()
        self._ledger = Ledger(self._prompts, self._memory.active_bytes, self._busy)
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
        idle = not self._loads and not any(batch.busy for batch in self._batches.values())
        try:
            command = self.inbox.get(block=idle, timeout=self._until_a_probe())
            while True:
                updates += self._obey(command)
                command = self.inbox.get_nowait()
        except queue.Empty:
            return updates

    def _until_a_probe(self) -> float | None:
        """Seconds until a model that is out of service is tried again, if there is one."""
        waits = [batch.probe_in for batch in self._batches.values()]
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
        match command:
            case Load():
                return self._begin_loading(command)
            case Unload(model_id=model_id):
                return self._unload(model_id)
            case Expect() | Submit() | Cancel():
                return list(self._serve(command))
            case Reset(model=model, reason=reason):
                for name, batch in self._batches.items():
                    batch.reset(reason if name == model else None)
                self._owner.clear()
                self._expected.clear()
                return [Recovered()]
            case Close():
                self._closing = True
                return self._fail_everything(EngineClosedError())

    def _serve(self, command: Expect | Submit | Cancel) -> Iterable[Update]:
        if isinstance(command, Expect):
            self._expected[command.key] = command.model
            return []
        self._expected.pop(command.key, None)
        if isinstance(command, Cancel):
            batch = self._batches.get(self._owner.get(command.key, ""))
            return [] if batch is None else batch.cancel(command.key)
        model = command.request.model
        batch = self._batches.get(model)
        if batch is None:
            return [Displaced(command.key)]
        self._owner[command.key] = model
        return batch.add(command.key, command.request, command.prompt, command.guide)

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
        self._loads.add(command.model_id, command.path)
        return updates

    def _prepare(self) -> None:
        if self._runtime is not None:
            return
        self._runtime = runtime.prepare(self._environ, self._scratch)
        from darkbloom_provider.engine.sampling import Samplers  # noqa: PLC0415 - imports MLX

        self._samplers = Samplers(self._entropy)
        self._limit_memory(self._runtime)

    def _limit_memory(self, facts: runtime.Runtime) -> None:
        settings = self._settings
        ceiling = runtime.ceiling(facts.recommended_bytes, settings.memory_ceiling_gb)
        self._ledger.limits = Limits(
            ceiling=ceiling,
            metal=facts.metal,
            piece_tokens=settings.prefill_step_idle,
            row_piece_tokens=settings.prefill_step_idle,
        )
        self._memory.limit(
            ceiling=ceiling,
            wired=runtime.wired_limit(facts.recommended_bytes, settings.wired_limit_gb),
        )

    def _load_step(self) -> list[Update]:
        """One piece of the first model in the line; streams of others go on in between."""
        read = self._loads.step()
        if read is None:
            return []
        if isinstance(read.outcome, ModelError):
            self._ledger.unloaded(read.model_id)
            self._states[read.model_id] = "crashed"
            return [LoadFailed(read.model_id, read.outcome)]
        return self._install(read, read.outcome)

    def _install(self, read: Read, weights: Weights) -> list[Update]:
        from darkbloom_provider.engine.batch import Batch  # noqa: PLC0415 - imports MLX

        if self._samplers is None:  # pragma: no cover - prepared before any load
            raise RuntimeError("the engine was not prepared")
        self._batches[read.model_id] = Batch(
            weights,
            settings=self._settings,
            samplers=self._samplers,
            cache=self._prompts,
            memory=self._ledger.of(read.model_id),
        )
        self._ledger.loaded(read.model_id, weights.weight_bytes)
        self._states[read.model_id] = "running"
        model = LoadedModel(
            model_id=read.model_id,
            context_length=weights.context_length,
            weight_bytes=weights.weight_bytes,
            load_seconds=read.seconds,
            chat_template=weights.chat_template,
            special_tokens=weights.special_tokens,
        )
        reader = prompt_reader(
            weights.tokenizer,
            chat_template=weights.chat_template,
            vocabulary_size=weights.vocabulary_size,
        )
        return [Loaded(model, reader)]

    def _unload(self, model_id: str) -> list[Update]:
        batch = self._batches.pop(model_id, None)
        if batch is None:
            return [Unloaded(model_id)]
        updates: list[Update] = list(batch.fail_all(not_in_memory(model_id)))
        self._tokens_of_unloaded += batch.tokens_generated
        del batch
        self._states[model_id] = "idle_shutdown"
        self._ledger.unloaded(model_id)
        self._memory.collect()
        return [*updates, Unloaded(model_id)]

    def _make_room(self, idle: Iterable[str]) -> list[Update]:
        """Unload models that nobody uses, for the sake of work that waits."""
        updates: list[Update] = []
        for model_id in idle:
            updates += self._unload(model_id)
        return updates

    def _busy(self, model_id: str) -> bool:
        if model_id in self._expected.values():
            return True
        batch = self._batches.get(model_id)
        return batch is not None and batch.busy

    # ------------------------------------------------------------ steps

    def _decode_step(self) -> list[Update]:
        updates: list[Update] = []
        for model, batch in self._batches.items():
            if batch.busy:
                self.pulse = replace(self.pulse, model=model)
                updates += batch.step()
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
            memory=MemorySnapshot()
            if facts is None
            else self._memory.snapshot(
                metal=facts.metal,
                prompt_cache_bytes=self._prompts.nbytes,
                ceiling=self._ledger.limits.ceiling,
            ),
            device="" if facts is None else facts.device,
            blas=None if facts is None else facts.blas,
            steps=self._steps,
            problem=next((f"{slot.model}: {slot.problem}" for slot in slots if slot.problem), None),
            tokens_generated=self._tokens_of_unloaded
            + sum(batch.tokens_generated for batch in self._batches.values()),
        )

    # ------------------------------------------------------------ the end

    def _fail_everything(self, error: EngineError) -> list[Update]:
        updates: list[Update] = []
        for batch in self._batches.values():
            updates += batch.fail_all(error)
        return updates

    def _free_everything(self) -> None:
        self._loads.clear()
        self._batches.clear()
        self._prompts.shrink(0)
        self._samplers = None
        if self._runtime is not None:
            if self._scratch is not None:
                runtime.restore_scratch(self._environ, self._scratch_before)
            self._memory.collect()
            self._memory.restore()
            import mlx.core as mx  # noqa: PLC0415 - loaded already; not at import time

            mx.clear_streams()
