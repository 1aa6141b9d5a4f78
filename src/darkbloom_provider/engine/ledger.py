"""What is in memory, who was promised how much, and who may come in. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from darkbloom_provider.engine import admission
from darkbloom_provider.engine.admission import Accept, Limits, Load, Refuse, Unload
from darkbloom_provider.engine.errors import InsufficientMemoryError, NoRoomError
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.models.memory import Footprint

GB = 10**9


class Ledger:
    """The promises of all models together.

    Args:
        prompts: The prompt cache, which gives way to everything else.
        active: Bytes that MLX itself counts as held.
        busy: Whether anybody runs on a model or waits for it.
    """

    def __init__(
        self,
        prompts: PromptCache,
        active: Callable[[], int],
        busy: Callable[[str], bool] = lambda _model: False,
    ) -> None:
        self.limits = Limits()
        self._prompts = prompts
        self._active = active
        self._busy = busy
        self._footprints: dict[str, Footprint] = {}
        """In the order of their last use, the longest ago first."""
        self._rows: dict[str, dict[int, int]] = {}
        self._ready: set[str] = set()
        """Those that have been read whole."""
        self._unwanted: list[str] = []

    def load(self, model: str, footprint: Footprint, *, make_room: bool) -> tuple[str, ...]:
        """Set memory aside for a model, and return the idle models that must go for it first.

        Raises:
            NoRoomError: It does not fit, or, unless `make_room`, not beside the others.
        """
        verdict = admission.judge_model(
            model,
            footprint,
            self._loads(),
            self.limits,
            idle=self._idle(model) if make_room else (),
            unexplained=self._unexplained(),
        )
        if isinstance(verdict, Accept | Unload):
            self._footprints[model] = footprint
            self._rows[model] = {}
            self._give_way()
            return verdict.models if isinstance(verdict, Unload) else ()
        ceiling = self.limits.ceiling or 0
        held = admission.worst(self._loads(), self.limits)
        alone = {model: Load(footprint, (admission.SMALLEST_ROW,))}
        raise NoRoomError(
            model,
            needed_gb=admission.worst(alone, self.limits) / GB,
            held_gb=held / GB,
            ceiling_gb=ceiling / GB,
            ever=not isinstance(verdict, Refuse) or verdict.needed <= ceiling,
        )

    def loaded(self, model: str, weight_bytes: int) -> None:
        """A model's weights have been read and counted."""
        self._footprints[model] = replace(self._footprints[model], weight_bytes=weight_bytes)
        self._ready.add(model)

    def unloaded(self, model: str) -> None:
        """A model has left memory, or never came."""
        self._footprints.pop(model, None)
        self._rows.pop(model, None)
        self._ready.discard(model)
        self._prompts.forget(model)
        self._give_way()

    def unwanted(self) -> list[str]:
        """Idle models that have to go so that a request that waits can begin. Told once."""
        names, self._unwanted = self._unwanted, []
        return [name for name in names if not self._rows.get(name) and not self._busy(name)]

    def of(self, model: str) -> ModelMemory:
        """One model's view."""
        return ModelMemory(self, model)

    def check(self, model: str, tokens: int) -> None:
        """Refuse a request that this machine could not serve even if it did nothing else.

        Raises:
            InsufficientMemoryError: With the numbers.
        """
        footprint, ceiling = self._footprints.get(model), self.limits.ceiling
        if footprint is None or ceiling is None:
            return
        load = Load(footprint, (tokens,))
        needed = admission.worst({model: load}, self.limits)
        if needed > ceiling:
            raise InsufficientMemoryError(
                model,
                tokens=tokens,
                weights_gb=footprint.weight_bytes / GB,
                needed_gb=needed / GB,
                ceiling_gb=ceiling / GB,
            )

    def most_tokens(self, model: str, at_most: int) -> int:
        """The longest request that `check` lets pass."""
        footprint = self._footprints.get(model)
        if footprint is None:
            return at_most
        return admission.most_tokens(footprint, self.limits, at_most)

    def enter(self, model: str, key: int, tokens: int) -> bool:
        """Promise a request its worst case; False while that would be more than there is.

        Raises:
            InsufficientMemoryError: Waiting would not help: something else holds the memory.
        """
        if model not in self._footprints:
            return True
        self._footprints[model] = self._footprints.pop(model)
        verdict = admission.judge_request(
            model,
            tokens,
            self._loads(),
            self.limits,
            idle=self._idle(model),
            unexplained=self._unexplained(),
        )
        if isinstance(verdict, Accept):
            self._rows[model][key] = tokens
            self._give_way()
            return True
        if isinstance(verdict, Unload):
            self._unwanted += [name for name in verdict.models if name not in self._unwanted]
        if isinstance(verdict, Refuse):
            raise InsufficientMemoryError(
                model,
                tokens=tokens,
                weights_gb=self._footprints[model].weight_bytes / GB,
                needed_gb=verdict.needed / GB,
                ceiling_gb=verdict.available / GB,
            )
        return False

    def leave(self, model: str, key: int) -> None:
        """A request needs nothing any more."""
        if self._rows.get(model, {}).pop(key, None) is not None:
            self._give_way()

    def piece(self, model: str) -> int:
        """Prompt tokens that one step may take on, all prompts together."""
        footprint = self._footprints.get(model)
        if footprint is None or self.limits.ceiling is None:
            return self.limits.piece_tokens
        rows = tuple(self._rows[model].values())
        return admission.piece_tokens(Load(footprint, rows), self.limits)

    def _loads(self) -> dict[str, Load]:
        return {
            model: Load(footprint, tuple(self._rows[model].values()))
            for model, footprint in self._footprints.items()
        }

    def _idle(self, but: str) -> tuple[str, ...]:
        return tuple(
            name
            for name in self._footprints
            if name != but and name in self._ready and not self._rows[name] and not self._busy(name)
        )

    def _unexplained(self) -> int:
        """What MLX holds beyond the worst case of everything that was let in."""
        known = admission.worst(self._loads(), self.limits) + self._prompts.nbytes
        return max(0, self._active() - known)

    def _give_way(self) -> None:
        """Let the prompt cache have what nobody was promised."""
        ceiling = self.limits.ceiling
        if ceiling is not None:
            self._prompts.shrink(
                ceiling - self._unexplained() - admission.worst(self._loads(), self.limits)
            )


class ModelMemory:
    """What a batch asks the ledger, about its own model."""

    def __init__(self, ledger: Ledger, model: str) -> None:
        self._ledger = ledger
        self._model = model

    def check(self, tokens: int) -> None:
        """See `Ledger.check`."""
        self._ledger.check(self._model, tokens)

    def most_tokens(self, at_most: int) -> int:
        """See `Ledger.most_tokens`."""
        return self._ledger.most_tokens(self._model, at_most)

    def enter(self, key: int, tokens: int) -> bool:
        """See `Ledger.enter`."""
        return self._ledger.enter(self._model, key, tokens)

    def leave(self, key: int) -> None:
        """See `Ledger.leave`."""
        self._ledger.leave(self._model, key)

    def piece(self) -> int:
        """See `Ledger.piece`."""
        return self._ledger.piece(self._model)
