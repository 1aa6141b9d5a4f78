"""What the engine's thread and the event loop say to each other. Plain values, nothing of MLX."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from darkbloom_provider.engine.errors import EngineError
from darkbloom_provider.engine.prompt import EncodedPrompt
from darkbloom_provider.engine.requests import (
    FinishReason,
    GenerationRequest,
    LoadedModel,
    TokenLogprob,
    Usage,
)
from darkbloom_provider.errors import ModelError

if TYPE_CHECKING:
    from darkbloom_provider.engine.preparing import PromptReader
    from darkbloom_provider.engine.structure import Guide

# ---------------------------------------------------------------- to the thread


@dataclass(frozen=True, slots=True)
class Load:
    """Read a model's folder into memory."""

    model_id: str
    path: Path
    make_room: bool = True
    """Whether models that nobody uses may be unloaded for it."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Free a model's memory; what runs on it is failed."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Expect:
    """A request is being prepared: its model is in use, and not to be given up for others.

    `key` names the request from here on; ids given by others may repeat.
    """

    key: int
    model: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate."""

    key: int
    request: GenerationRequest
    prompt: EncodedPrompt = field(repr=False)
    guide: Guide | None = field(default=None, repr=False)
    """Holds the completion to the request's structure."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a request, in whatever phase it is; one that was expected will not come."""

    key: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Compute no more of a request for now: its reader is far behind."""

    key: int


@dataclass(frozen=True, slots=True)
class GoOn:
    """The reader of a request that was held has caught up."""

    key: int


@dataclass(frozen=True, slots=True)
class Close:
    """Fail everything in flight, free everything and end the thread."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget what is in flight, which was failed already, and build every batch anew."""

    model: str
    """Whose step got nowhere. It is left alone for a while."""
    reason: str


Command = Load | Unload | Expect | Submit | Cancel | Hold | GoOn | Close | Reset

# ---------------------------------------------------------------- from the thread


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model answers requests now."""

    model: LoadedModel
    reader: PromptReader = field(repr=False)
    """Prepares requests to it."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model could not be read. Others are not touched."""

    model_id: str
    error: ModelError


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The model's memory is free."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt was read and is being processed, or waits for its place in the batch."""

    key: int
    prompt_tokens: int
    prompt_end: str = field(default="", repr=False)
    """How the rendered prompt ends; some templates open the model's thoughts there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One token more, and the text that became certain with it."""

    key: int
    text: str = field(repr=False)
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Finished:
    """The completion is whole."""

    key: int
    reason: FinishReason
    usage: Usage
    stop: str | None = field(default=None, repr=False)
    """The stop string that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends without a completion."""

    key: int
    error: EngineError


@dataclass(frozen=True, slots=True)
class Released:
    """A cancelled request has left the engine."""

    key: int


@dataclass(frozen=True, slots=True)
class Displaced:
    """A request came too late: its model had just been unloaded. Nothing is held of it."""

    key: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """The thread has come back and has heard `Reset`."""


RequestUpdate = Started | Progress | Finished | Failed | Released
Update = Loaded | LoadFailed | Unloaded | Displaced | Recovered | RequestUpdate
