"""What the engine can answer instead of a completion."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

from darkbloom_provider.errors import DarkbloomError, ModelError


class EngineError(DarkbloomError):
    """A request that cannot be served, or not to its end.

    Args:
        status_code: The HTTP status a consumer is answered with.
        message: One sentence that is safe to show: it never holds any of the prompt or completion.
        why: The cause, for the owner's log. Safe to show as well.
        next_step: What to do about it.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        why: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(message, why=why, next_step=next_step)
        self.status_code = int(status_code)

    @property
    def message(self) -> str:
        """What is said to the consumer."""
        return self.what


class InvalidGenerationError(EngineError):
    """The consumer is to blame: 400, or 413 for a prompt that does not fit the model."""


class ModelNotLoadedError(EngineError):
    """No such model in memory: 404 if it was never loaded here, 503 while it is not resident."""


class LoadFailedError(EngineError):
    """A request waited for its model, which then could not be loaded: `__cause__` says why.

    Args:
        model: The model's id.
        error: Why; told to the owner only, it may name a path.
    """

    def __init__(self, model: str, error: ModelError) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{model} could not be loaded on this machine",
            why="; ".join(filter(None, (error.what, error.why))),
            next_step=error.next_step,
        )
        self.__cause__ = error


class OverloadedError(EngineError):
    """The bounded queue of a model is full. Nothing was started."""

    def __init__(self, model: str, waiting: int) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{model} is busy on this machine",
            why=f"{waiting} requests are waiting already",
            next_step="try again in a moment",
        )


class InsufficientMemoryError(EngineError):
    """A request's worst case does not fit under the memory's ceiling. Nothing was started.

    Args:
        model: The model's id.
        tokens: Prompt and longest possible completion.
        weights_gb: The model's weights.
        needed_gb: All that the request would take, the weights among it.
        ceiling_gb: All that it could have.
    """

    def __init__(
        self, model: str, *, tokens: int, weights_gb: float, needed_gb: float, ceiling_gb: float
    ) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{model} would need {needed_gb:.2f} GB of memory for {tokens} tokens of prompt and "
            f"completion ({weights_gb:.2f} GB of it weights), and may use {ceiling_gb:.2f} GB here",
            next_step="ask for fewer tokens, or try another provider",
        )


class NoRoomError(ModelError):
    """A model does not fit into memory now, or ever. Nothing was read.

    Args:
        model: The model's id.
        needed_gb: What it takes with one small request.
        held_gb: What others may need at their fullest.
        ceiling_gb: What all may use together.
        ever: Whether it would fit by itself.
    """

    def __init__(
        self, model: str, *, needed_gb: float, held_gb: float, ceiling_gb: float, ever: bool
    ) -> None:
        super().__init__(
            f"{model} does not fit into memory {'now' if ever else 'on this machine'}",
            why=f"it needs {needed_gb:.2f} GB, {held_gb:.2f} GB are spoken for, "
            f"and the ceiling is {ceiling_gb:.2f} GB",
            next_step="it is loaded when the others are idle"
            if ever
            else "serve a smaller model, or raise [provider] memory_limit_gb",
        )
        self.ever = ever


class UnbatchableModelError(ModelError):
    """A model's layers remember in a way that cannot be batched, so no request could be answered.

    Args:
        path: The model's folder.
        kind: The layers' kind, in mlx-lm's words.
    """

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(
            f"The model in {path} cannot be served",
            why=f"mlx-lm cannot batch the {kind} of its layers",
            next_step="serve a model of another family; [backend] enabled_models names those that "
            "are served",
        )
        self.kind = kind


class GenerationFailedError(EngineError):
    """The engine is to blame: a step failed, and everything in flight with it."""


class OutOfServiceError(EngineError):
    """The model failed again and again, or hangs. It is tried again by itself; nothing started.

    Args:
        model: The model's id.
        problem: What is wrong with it.
    """

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{model} is out of service on this machine",
            why=problem,
            next_step="try another provider",
        )


class EngineClosedError(EngineError):
    """The engine is closing, or was closed, while the request was in flight."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the provider is stopping",
            next_step="try another provider",
        )
