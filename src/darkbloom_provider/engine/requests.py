"""The values that go in and out of the engine. Frozen, made of plain Python, free of MLX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from darkbloom_provider.engine.errors import InvalidGenerationError

FinishReason = Literal["stop", "length"]
SlotState = Literal["running", "reloading", "crashed", "idle_shutdown"]
"""A model's state in the words of the heartbeat. `reloading` means it is being loaded."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Equal values are sampled in one call for a whole batch."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    seed: int | None = None
    """The same seed gives the same text, whatever else is in the batch."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to generate. What the consumer wrote never shows in a representation.

    Exactly one of `messages` (rendered by the model's chat template) and `prompt` (text as it
    stands) is set. `max_tokens` is an upper bound: a completion also ends, with reason `length`,
    where the model's context ends. `None` means up to there.
    """

    request_id: str
    model: str
    messages: tuple[Mapping[str, Any], ...] | None = field(default=None, repr=False)
    prompt: str | None = field(default=None, repr=False)
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    tools: tuple[Mapping[str, Any], ...] | None = field(default=None, repr=False)

    @property
    def sampling(self) -> SamplingParams:
        """The part that decides how tokens are chosen. Greedy requests are all alike."""
        if self.temperature == 0:
            return SamplingParams()
        return SamplingParams(self.temperature, self.top_p, self.top_k, self.min_p, self.seed)

    def check(self) -> None:
        """Refuse values that make no sense, before anything is started.

        Raises:
            InvalidGenerationError: With the parameter's name.
        """
        if (self.messages is None) == (self.prompt is None):
            raise _refused("exactly one of messages and prompt must be given")
        if self.messages is not None and not self.messages:
            raise _refused("messages must not be empty")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _refused("max_tokens must be at least 1")
        if not _within(self.temperature, 0, 100):
            raise _refused("temperature must be a number between 0 and 100")
        if not _within(self.top_p, 0, 1):
            raise _refused("top_p must be a number between 0 and 1")
        if not _within(self.min_p, 0, 1):
            raise _refused("min_p must be a number between 0 and 1")
        if self.top_k < 0:
            raise _refused("top_k must not be negative")
        if self.repetition_penalty is not None and not _within(self.repetition_penalty, 0.01, 100):
            raise _refused("repetition_penalty must be a number between 0.01 and 100")
        if any(not stop for stop in self.stop):
            raise _refused("stop must not hold an empty string")


def _within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


def _refused(message: str) -> InvalidGenerationError:
    return InvalidGenerationError(HTTPStatus.BAD_REQUEST, message)


@dataclass(frozen=True, slots=True)
class Usage:
    """True token counts: the prompt after the chat template, and every token the model made.

    The token that ends a turn is one of them; it costs a step like any other.
    """

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Text since the last pull, and the tokens generated up to its end."""

    text: str = field(repr=False)
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of the engine. Sizes of memory are in GB (10^9 bytes)."""

    max_running: int = 8
    """Requests of one model that are decoded together."""
    max_waiting: int = 32
    """Requests of one model that may wait for a place; one more is answered 503."""
    prefill_step_busy: int = 128
    """Prompt tokens processed between two decode steps while streams run: their longest stall."""
    prefill_step_idle: int = 512
    """The same while nothing is being decoded. Bounds how long a cancellation can take."""
    wired_limit_gb: float | None = None
    """Memory the GPU may keep wired; absent means half of what Metal recommends. The library's own
    default, all of it, is named in reports of kernel panics."""
    load_step_bytes: int = 256 * 1024 * 1024
    """Weights read between two decode steps while another model is being loaded."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What the engine learnt when it loaded a model."""

    model_id: str
    context_length: int
    """Tokens of prompt and completion together."""
    weight_bytes: int
    load_seconds: float


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """One model, in the figures of the heartbeat's `backend_capacity.slots`."""

    model: str
    state: SlotState
    running: int = 0
    """Requests in the batch, their prompt included."""
    waiting: int = 0
    active_tokens: int = 0
    """Prompt and completion tokens of the running requests."""
    max_tokens_potential: int = 0
    """Sum of the running requests' output limits."""
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """MLX's own counters, in GB (10^9 bytes). The process's RSS does not show Metal's memory."""

    active_gb: float = 0.0
    """Held by arrays: weights, caches, intermediate results."""
    peak_gb: float = 0.0
    cache_gb: float = 0.0
    """Freed by arrays and kept for the next."""
    source: Literal["metal", "cpu", "none"] = "none"
    """What is counted: `metal` is GPU memory, `cpu` is what MLX's CPU back end has allocated from
    ordinary memory, `none` means MLX has not been loaded."""


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """The engine as of its last step. Taking one never waits for anything."""

    slots: tuple[SlotSnapshot, ...] = ()
    memory: MemorySnapshot = MemorySnapshot()
    device: str = ""
    """What computes, for people: `Apple M4 Max (Metal)` or `CPU`."""
    blas: str | None = None
    """The fast BLAS library found and preloaded on Linux, if one was."""
    steps: int = 0
    """Decode steps since the engine started."""
    tokens_generated: int = 0

    def slot(self, model: str) -> SlotSnapshot | None:
        """The slot of a model, or None if it was never loaded here."""
        return next((slot for slot in self.slots if slot.model == model), None)
