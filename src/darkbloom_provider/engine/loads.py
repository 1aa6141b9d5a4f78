"""The line of models on their way into memory, read piece by piece. Engine thread only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from darkbloom_provider.errors import ModelError

if TYPE_CHECKING:
    from darkbloom_provider.engine.loading import Weights


@dataclass(frozen=True, slots=True)
class Read:
    """A model that was read whole, or why it could not be."""

    model_id: str
    outcome: Weights | ModelError
    seconds: float
    """Since its load was asked for."""


@dataclass(slots=True)
class _Load:
    model_id: str
    steps: Generator[None, None, Weights]
    began: float


class Loads:
    """One model after the other, in the order of arrival.

    Args:
        step_bytes: Weights read at a time; streams of other models go on in between.
        clock: Monotonic seconds.
    """

    def __init__(self, step_bytes: int, clock: Callable[[], float]) -> None:
        self._step_bytes = step_bytes
        self._clock = clock
        self._line: deque[_Load] = deque()

    def __bool__(self) -> bool:
        return bool(self._line)

    def add(self, model_id: str, path: Path) -> None:
        """Put a model at the end of the line. MLX must be prepared."""
        from darkbloom_provider.engine.loading import load_steps  # noqa: PLC0415 - imports MLX

        self._line.append(_Load(model_id, load_steps(path, self._step_bytes), self._clock()))

    def step(self) -> Read | None:
        """Read one piece of the first in the line; what became of it if that was the last."""
        if not self._line:
            return None
        load = self._line[0]
        outcome: Weights | ModelError
        try:
            next(load.steps)
        except StopIteration as done:
            outcome = done.value
        except ModelError as error:
            outcome = error
        else:
            return None
        self._line.popleft()
        return Read(load.model_id, outcome, self._clock() - load.began)

    def clear(self) -> None:
        """Let go of everything."""
        for load in self._line:
            load.steps.close()
        self._line.clear()
