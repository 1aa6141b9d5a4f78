"""The values that go in and out of the engine. Frozen, made of plain Python, free of MLX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from darkbloom_provider.engine.errors import InvalidGenerationError
from darkbloom_provider.engine.speeds import Speed

FinishReason = Literal["stop", "length"]
SlotState = Literal["running", "reloading", "crashed", "idle_shutdown"]
"""A model's state in the words of the heartbeat. `reloading` means it is being loaded."""

MAX_LOGPROBS = 20
"""The most alternatives a request may ask for, as in the OpenAI API."""
MAX_BIAS = 100
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 100),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("repetition_penalty", 0.01, 100),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)


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
class Structure:
    """What shape the completion must have. Enforced while it is generated, token by token."""

    kind: Literal["json_object", "json_schema"]
    """Any JSON object, or a value that a schema accepts."""
    schema: str = field(default="", repr=False)
    """JSON text of the schema for `json_schema`."""
    source: str = "response_format"
    """The parameter that it comes from, for refusals."""


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
    presence_penalty: float = 0.0
    """Taken off the logit of each token that the completion holds already."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token for each time that the completion holds it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""
    logprobs: int | None = None
    """Alternatives to tell for each token; 0 tells the chosen token's probability only."""
    ignore_eos: bool = False
    """Go on to `max_tokens` when the model says it is done; for measurements."""
    structure: Structure | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """More variables for the model's chat template, such as `enable_thinking`."""
    tenant: str | None = field(default=None, repr=False)
    """Whose prompt this is: computed prefixes are shared within one tenant only."""

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
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise _refused(f"{name} must be a number between {low} and {high}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _refused("max_tokens must be at least 1")
        if self.top_k < 0:
            raise _refused("top_k must not be negative")
        if any(not stop for stop in self.stop):
            raise _refused("stop must not hold an empty string")
        if not all(token >= 0 and abs(bias) <= MAX_BIAS for token, bias in self.logit_bias):
            raise _refused(f"logit_bias must give token ids numbers of at most {MAX_BIAS}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise _refused(f"top_logprobs must be between 0 and {MAX_LOGPROBS}")
        if self.structure is not None and self.ignore_eos:
            raise _refused("ignore_eos does not go with response_format")


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
class TokenChoice:
    """A token that was or might have been chosen."""

    data: bytes = field(repr=False)
    """What the token writes; a token may be a part of a UTF-8 character."""
    logprob: float
    """Natural logarithm of its probability, before temperature and filters."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The chosen token, and the likeliest tokens in its place, best first."""

    chosen: TokenChoice
    top: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """Text since the last pull, and the tokens generated up to its end."""

    text: str = field(repr=False)
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """One for each token since the last pull, if the request asked for them. A token's entry may
    come before its text, where text is held back as the possible beginning of a stop string."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of the engine. Sizes of memory are in GB (10^9 bytes)."""

    max_running: int = 16
    """Requests of one model that are decoded together. The network gives a provider 12 at most."""
    max_waiting: int = 32
    """Requests of one model that may wait for a place; one more is answered 503."""
    step_busy_s: float = 0.16
    """Seconds a step may take while streams run, prompts included: their longest stall. How many
    tokens of prompts that allows is measured as it goes."""
    step_idle_s: float = 0.5
    """The same while nothing is being decoded: how long newcomers and cancellations may wait."""
    prefill_step_busy: int = 1024
    """Most tokens of each prompt in one step while streams run."""
    prefill_step_idle: int = 2048
    """The same while nothing is being decoded."""
    wired_limit_gb: float | None = None
    """Memory the GPU may keep wired; absent means half of what Metal recommends. The library's own
    default, all of it, is named in reports of kernel panics."""
    memory_ceiling_gb: float | None = None
    """Most memory for weights, requests and the prompt cache together, by MLX's own counters. Work
    that could exceed it is refused before it begins; None refuses nothing for want of memory."""
    unasked_tokens: int = 8192
    """Longest completion of a request that sets no limit: what the network reserves for it."""
    prompt_cache_gb: float = 2.0
    """Most memory for prompts that have been computed before; 0 computes every prompt anew."""
    stall_limit_s: float = 60.0
    """Seconds without a token or a piece of a prompt after which everything in flight is failed."""
    load_wait_s: float = 540.0
    """Seconds that a request waits for its model to be loaded. The network gives up a request that
    has said nothing for 600."""
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
    chat_template: str | None = None
    """Source of the model's chat template; None if it completes prompts only."""
    special_tokens: frozenset[str] = frozenset()
    """Texts of the vocabulary's marker tokens, such as `<think>` or `<tool_call>`."""


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
    problem: str | None = None
    """Why a crashed model is out of service. It is tried again by itself."""
    speed: Speed = field(default_factory=Speed)
    """Measured here, on requests that had the model to themselves."""


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """MLX's own counters, in GB (10^9 bytes). The process's RSS does not show Metal's memory."""

    active_gb: float = 0.0
    """Held by arrays: weights, caches, intermediate results."""
    peak_gb: float = 0.0
    cache_gb: float = 0.0
    """Freed by arrays and kept for the next."""
    prompt_cache_gb: float = 0.0
    """The part of `active_gb` that is prompts kept for later: it gives way to any request."""
    ceiling_gb: float | None = None
    """What all may take together; None if nobody set a limit."""
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
    problem: str | None = None
    """What keeps the engine or one of its models from working, in one sentence."""

    def slot(self, model: str) -> SlotSnapshot | None:
        """The slot of a model, or None if it was never loaded here."""
        return next((slot for slot in self.slots if slot.model == model), None)
