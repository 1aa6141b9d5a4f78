"""One request for text, whatever dialect it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

DEFAULT_MAX_TOKENS: Final = 8192
DEFAULT_TEMPERATURE: Final = 0.7
DEFAULT_TOP_P: Final = 0.9
"""Sampling defaults of this network, so that a prompt answers alike on every provider."""

CHAT_ENDPOINT: Final = "/v1/chat/completions"
COMPLETIONS_ENDPOINT: Final = "/v1/completions"
MESSAGES_ENDPOINT: Final = "/v1/messages"
RESPONSES_ENDPOINT: Final = "/v1/responses"
"""Coordinators only: they rewrite what is sent there into a chat."""

Dialect = Literal["chat", "completions", "messages"]
"""Whose shapes the answer has: OpenAI's two, or Anthropic's."""

CHAT_FEATURES: Final = frozenset({CHAT_ENDPOINT})
"""Plain chat, with none of the parameters a provider may or may not serve."""
ALL_FEATURES: Final = frozenset(
    {
        CHAT_ENDPOINT,
        COMPLETIONS_ENDPOINT,
        MESSAGES_ENDPOINT,
        "n",
        "logprobs",
        "top_logprobs",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "tools",
        "tool_choice",
        "response_format",
        "ignore_eos",
    }
)
"""Everything that can be read: endpoints and parameters that need more than plain chat.

`tool_choice` stands for calls that are forced; to allow or forbid them needs no more than `tools`.
"""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may, must or must not call a tool."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    """The one tool that must be called, if mode is `required` and the consumer names one."""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The answer must be JSON. `schema` None: any object."""

    schema: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One request, checked. Its content never shows in a representation."""

    model: str
    messages: tuple[Mapping[str, object], ...] = field(default=(), repr=False)
    """The conversation in OpenAI's form: text content, `tool_calls` with arguments as JSON text."""
    stream: bool = False
    include_usage: bool = False
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    dialect: Dialect = "chat"
    prompts: tuple[str, ...] = field(default=(), repr=False)
    """Texts to complete as they stand, instead of `messages`."""
    n: int = 1
    """Answers to each prompt."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """Alternatives told for each token, besides the token itself. None: no log probabilities."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    """In OpenAI's form. Empty also where `tool_choice` forbids calls."""
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    template_options: Mapping[str, object] = field(default_factory=dict)
    """Variables for the chat template, such as `enable_thinking`."""
    ignore_eos: bool = False
    """Go on to `max_tokens`, for measurements."""
    tenant: str | None = field(default=None, repr=False)
    """Who asks, among the users of one consumer: what is computed for one is not reused for
    another."""
    ignored: tuple[str, ...] = ()
    """Names of parameters nobody knows, for counting. `?` stands for those unfit to be told."""

    @property
    def choices(self) -> int:
        """Answers in all."""
        return self.n * max(1, len(self.prompts))
