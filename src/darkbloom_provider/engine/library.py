"""The models in memory and those on their way there, under one ceiling. Engine thread only.

Models are read one after the other, in the order in which they were asked for, piece by piece, so
that streams of others go on in between. Whether one fits is decided when its turn has come: what is
before it in the line may have to make room for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from darkbloom_provider.engine import runtime
from darkbloom_provider.engine.admission import Limits
from darkbloom_provider.engine.device_memory import DeviceMemory
from darkbloom_provider.engine.errors import NoRoomError
from darkbloom_provider.engine.ledger import GB, Ledger
from darkbloom_provider.engine.preparing import prompt_reader
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import (
    EngineSettings,
    EngineSnapshot,
    LoadedModel,
    SlotSnapshot,
    SlotState,
)
from darkbloom_provider.engine.residency import not_in_memory
from darkbloom_provider.engine.updates import Load, Loaded, LoadFailed, Unloaded, Update
from darkbloom_provider.errors import ModelError
from darkbloom_provider.models.memory import measure

if TYPE_CHECKING:
    from darkbloom_provider.engine.batch import Batch
    from darkbloom_provider.engine.loading import Weights
    from darkbloom_provider.engine.sampling import Samplers


@dataclass(slots=True)
class _Loading:
    """The model that is being read."""

    model_id: str
    steps: Generator[None, None, Weights]
    began: float


class Library:
    """Loads, unloads, and knows what is in memory.

    Args:
        settings: Bounds.
        entropy: Random numbers of 64 bits for unseeded sampling.
        environ: The process's environment, for the libraries (`runtime.prepare`).
        expected: Whether a request to a model is on its way here.
        scratch: A private directory for the libraries' temporary files; None leaves the system's.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        settings: EngineSettings,
        entropy: Callable[[], int],
        environ: MutableMapping[str, str],
        expected: Callable[[str], bool],
        scratch: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.batches: dict[str, Batch] = {}
        """One for each model in memory."""
        self._settings = settings
        self._entropy = entropy
        self._environ = environ
        self._expected = expected
        self._scratch = scratch
        self._scratch_before = environ.get(runtime.SCRATCH_VARIABLE)
        self._clock = clock
        self._states: dict[str, SlotState] = {}
        self._line: deque[Load] = deque()
        self._loading: _Loading | None = None
        self._prompts = PromptCache(int(settings.prompt_cache_gb * GB))
        self._memory = DeviceMemory()
        self._ledger = Ledger(self._prompts, self._memory.active_bytes, self._busy)
        self._samplers: Samplers | None = None
        self._runtime: runtime.Runtime | None = None
        self._tokens_of_unloaded = 0

    @property
    def loading(self) -> bool:
        """Whether `load_step` has anything to do."""
        return self._loading is not None or bool(self._line)

    # ------------------------------------------------------------ in

    def load(self, command: Load) -> None:
        """Put a model at the end of the line."""
        self._line.append(command)
        self._states[command.model_id] = "reloading"

    def load_step(self) -> list[Update]:
        """Read one piece of the model whose turn it is, or see whether the next one fits."""
        if self._loading is None:
            return self._begin(self._line.popleft()) if self._line else []
        loading = self._loading
        try:
            next(loading.steps)
        except StopIteration as done:
            self._loading = None
            return [self._install(loading, done.value)]
        except ModelError as error:
            self._loading = None
            self._ledger.unloaded(loading.model_id)
            return [self._failed(loading.model_id, error)]
        return []

    def _begin(self, command: Load) -> list[Update]:
        try:
            self._prepare()
            idle = self._ledger.load(
                command.model_id, measure(command.path), make_room=command.make_room
            )
        except ModelError as error:
            return [self._failed(command.model_id, error)]
        from darkbloom_provider.engine.loading import load_steps  # noqa: PLC0415 - imports MLX

        updates = self._unload_all(idle)
        steps = load_steps(command.path, self._settings.load_step_bytes)
        self._loading = _Loading(command.model_id, steps, self._clock())
        return updates

    def _failed(self, model_id: str, error: ModelError) -> Update:
        later = isinstance(error, NoRoomError) and error.ever
        self._states[model_id] = "idle_shutdown" if later else "crashed"
        return LoadFailed(model_id, error)

    def _prepare(self) -> None:
        if self._runtime is not None:
            return
        try:
            self._runtime = runtime.prepare(self._environ, self._scratch)
            from darkbloom_provider.engine.sampling import Samplers  # noqa: PLC0415 - imports MLX
        except (ImportError, OSError) as error:
            raise ModelError(
                "MLX does not run on this machine",
                why=str(error),
                next_step="see which systems are supported in the README",
            ) from error
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

    def _install(self, loading: _Loading, weights: Weights) -> Update:
        from darkbloom_provider.engine.batch import Batch  # noqa: PLC0415 - imports MLX

        if self._samplers is None:  # pragma: no cover - prepared before any load
            raise RuntimeError("the engine was not prepared")
        model_id = loading.model_id
        self.batches[model_id] = Batch(
            weights,
            settings=self._settings,
            samplers=self._samplers,
            cache=self._prompts,
            memory=self._ledger.of(model_id),
        )
        self._ledger.loaded(model_id, weights.weight_bytes)
        self._states[model_id] = "running"
        model = LoadedModel(
            model_id=model_id,
            context_length=weights.context_length,
            weight_bytes=weights.weight_bytes,
            load_seconds=self._clock() - loading.began,
            chat_template=weights.chat_template,
            special_tokens=weights.special_tokens,
        )
        reader = prompt_reader(
            weights.tokenizer,
            chat_template=weights.chat_template,
            vocabulary_size=weights.vocabulary_size,
        )
        return Loaded(model, reader)

    # ------------------------------------------------------------ out

    def unload(self, model_id: str) -> list[Update]:
        """Free a model's memory; what runs on it is failed."""
        batch = self.batches.pop(model_id, None)
        if batch is None:
            return [Unloaded(model_id)]
        updates: list[Update] = list(batch.fail_all(not_in_memory(model_id)))
        self._tokens_of_unloaded += batch.tokens_generated
        del batch
        self._states[model_id] = "idle_shutdown"
        self._ledger.unloaded(model_id)
        self._memory.collect()
        return [*updates, Unloaded(model_id)]

    def make_room(self) -> list[Update]:
        """Unload idle models that have to go so that a request that waits can begin."""
        return self._unload_all(self._ledger.unwanted())

    def _unload_all(self, models: Iterable[str]) -> list[Update]:
        return [update for model_id in models for update in self.unload(model_id)]

    def _busy(self, model_id: str) -> bool:
        batch = self.batches.get(model_id)
        return self._expected(model_id) or (batch is not None and batch.busy)

    def free(self) -> None:
        """Let go of everything, and put back what was changed of the process."""
        if self._loading is not None:
            self._loading.steps.close()
        self._loading = None
        self._line.clear()
        self.batches.clear()
        self._prompts.shrink(0)
        self._samplers = None
        if self._runtime is not None:
            if self._scratch is not None:
                runtime.restore_scratch(self._environ, self._scratch_before)
            self._memory.collect()
            self._memory.restore()

    # ------------------------------------------------------------ figures

    def snapshot(self, steps: int) -> EngineSnapshot:
        """The figures of now, after so many steps."""
        slots = tuple(self._slot(model, state) for model, state in self._states.items())
        seen = EngineSnapshot(
            slots=slots,
            steps=steps,
            problem=next((f"{slot.model}: {slot.problem}" for slot in slots if slot.problem), None),
            tokens_generated=self._tokens_of_unloaded
            + sum(batch.tokens_generated for batch in self.batches.values()),
        )
        if self._runtime is None:
            return seen
        return replace(
            seen,
            memory=self._memory.snapshot(
                metal=self._runtime.metal,
                prompt_cache_bytes=self._prompts.nbytes,
                ceiling=self._ledger.limits.ceiling,
            ),
            device=self._runtime.device,
            blas=self._runtime.blas,
        )

    def _slot(self, model: str, state: SlotState) -> SlotSnapshot:
        batch = self.batches.get(model)
        slot = SlotSnapshot(model, state) if batch is None else batch.snapshot(model)
        return slot if slot.state == "crashed" else replace(slot, state=state)
