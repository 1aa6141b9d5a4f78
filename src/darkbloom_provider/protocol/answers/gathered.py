"""What was said in one choice so far, and the figures that go with its tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from darkbloom_provider.protocol.openai import FinishReason
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
)

AnswerReason = Literal["stop", "length", "content_filter", "tool_calls"]

LEAST_LOGPROB: Final = -9999.0
"""What the dialect writes for a token that was impossible: JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely it was, as a natural logarithm."""

    text: str = field(repr=False)
    logprob: float
    top: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    """The likeliest tokens at its place."""
    data: bytes | None = field(default=None, repr=False)
    """Its bytes, where they are not the text's: a token may be a part of a character."""

    @property
    def finite(self) -> float:
        """The figure as JSON can hold it."""
        return self.logprob if math.isfinite(self.logprob) else LEAST_LOGPROB


@dataclass(slots=True)
class ToolCall:
    """A call, put together."""

    id: str
    name: str = field(repr=False)
    arguments: str = field(default="", repr=False)


@dataclass(slots=True)
class Gathered:
    """Everything said in one choice."""

    content: list[str] = field(default_factory=list, repr=False)
    reasoning: list[str] = field(default_factory=list, repr=False)
    calls: list[ToolCall] = field(default_factory=list, repr=False)
    logprobs: list[TokenLogprob] = field(default_factory=list, repr=False)
    reason: AnswerReason = "stop"
    stop_sequence: str | None = field(default=None, repr=False)

    def add(self, pieces: Iterable[Piece], logprobs: Iterable[TokenLogprob]) -> None:
        """Take in more of the choice."""
        self.logprobs += logprobs
        for piece in pieces:
            match piece:
                case ContentDelta(text):
                    self.content.append(text)
                case ReasoningDelta(text):
                    self.reasoning.append(text)
                case ToolCallStarted(_, identifier, name):
                    self.calls.append(ToolCall(identifier, name))
                case ToolCallArguments(index, fragment):
                    self.calls[index].arguments += fragment
                case ToolCallEnded():
                    pass

    def finish(self, reason: FinishReason, stop_sequence: str | None) -> None:
        """Note why the choice ended."""
        self.reason = answer_reason(reason, called=bool(self.calls))
        self.stop_sequence = stop_sequence


def answer_reason(reason: FinishReason, *, called: bool) -> AnswerReason:
    """Why an answer ended, in the consumer's words: a turn that ended with calls waits for them."""
    return "tool_calls" if called and reason == "stop" else reason
