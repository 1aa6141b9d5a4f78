"""What the engine can answer instead of a completion."""

from __future__ import annotations

from http import HTTPStatus

from darkbloom_provider.errors import DarkbloomError


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


class OverloadedError(EngineError):
    """The bounded queue of a model is full. Nothing was started."""

    def __init__(self, model: str, waiting: int) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{model} is busy on this machine",
            why=f"{waiting} requests are waiting already",
            next_step="try again in a moment",
        )


class GenerationFailedError(EngineError):
    """The engine is to blame: a step failed, and everything in flight with it."""


class EngineClosedError(EngineError):
    """The engine is closing, or was closed, while the request was in flight."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the provider is stopping",
            next_step="try another provider",
        )
