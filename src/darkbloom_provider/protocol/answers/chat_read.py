"""Answers of chat read back into pieces, and told again in the shape of another dialect.

A coordinator needs it where a consumer asked in a dialect that its provider does not speak, the
local endpoint for responses, which are served as chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from darkbloom_provider.protocol.answers.answer import Answer
from darkbloom_provider.protocol.answers.gathered import TokenLogprob
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.openai import FinishReason
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
)

_REASONS: Final[Mapping[object, FinishReason]] = {
    "stop": "stop",
    # Whether there were calls is seen from the calls.
    "tool_calls": "stop",
    "length": "length",
    "content_filter": "content_filter",
}


@dataclass(slots=True)
class _Choice:
    calls: int = 0
    calling: bool = False
    """Whether the last call may still grow."""
    finished: bool = False

    def end_call(self) -> Iterator[Piece]:
        if self.calling:
            self.calling = False
            yield ToolCallEnded(self.calls - 1)


@dataclass(slots=True)
class Retelling:
    """Chat documents in, events of `answer` out. Foreign JSON of any shape is survived."""

    answer: Answer
    prompt_tokens: int
    """Told where the dialect wants it before anybody has counted."""
    begun: bool = False
    choices: dict[int, _Choice] = field(default_factory=dict)

    def begin(self) -> list[str]:
        """What comes before the first word. Idempotent."""
        if self.begun:
            return []
        self.begun = True
        return self.answer.start(self.prompt_tokens)

    def hear(self, document: Mapping[str, Any]) -> list[str]:
        """One `chat.completion.chunk`, or a whole `chat.completion`."""
        events = self.begin()
        for index, choice in _choices(document):
            state = self.choices.setdefault(index, _Choice())
            if state.finished:
                continue
            pieces = [p for said in _said(choice) for p in _pieces(said, state)]
            reason = _REASONS.get(_hashable(choice.get("finish_reason")))
            if reason is not None:
                pieces += state.end_call()
            events += self.answer.pieces(pieces, index, list(_logprobs(choice)))
            if reason is not None:
                state.finished = True
                events += self.answer.finish(reason, index)
        return events

    def end(self, used: Usage) -> list[str]:
        """Everything was heard."""
        events = self.begin()
        for index, state in self.choices.items() or [(0, _Choice())]:
            if not state.finished:
                events += self.answer.finish("stop", index)
        return events + self.answer.end(used)


def _choices(document: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    choices = document.get("choices")
    for position, choice in enumerate(choices if isinstance(choices, list) else []):
        if isinstance(choice, dict):
            index = choice.get("index")
            yield (index if isinstance(index, int) else position), choice


def _said(choice: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("delta", "message"):
        said = choice.get(name)
        if isinstance(said, dict):
            yield said


def _pieces(said: Mapping[str, Any], state: _Choice) -> Iterator[Piece]:
    thought = said.get("reasoning") or said.get("reasoning_content")
    if isinstance(thought, str) and thought:
        yield from state.end_call()
        yield ReasoningDelta(thought)
    text = said.get("content")
    if isinstance(text, str) and text:
        yield from state.end_call()
        yield ContentDelta(text)
    calls = said.get("tool_calls")
    for position, call in enumerate(calls if isinstance(calls, list) else []):
        if isinstance(call, dict):
            yield from _call(call, call.get("index", position), state)


def _call(call: Mapping[str, Any], index: object, state: _Choice) -> Iterator[Piece]:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    if index == state.calls:
        yield from state.end_call()
        state.calls += 1
        state.calling = True
        yield ToolCallStarted(
            state.calls - 1, str(call.get("id") or ""), str(function.get("name") or "")
        )
    elif index != state.calls - 1 or not state.calling:
        # A gap, or more of a call that has ended.
        return
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        yield ToolCallArguments(state.calls - 1, arguments)


def _logprobs(choice: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    told = choice.get("logprobs")
    tokens = told.get("content") if isinstance(told, dict) else None
    for token in tokens if isinstance(tokens, list) else []:
        if isinstance(token, dict):
            top = token.get("top_logprobs")
            rivals = [t for t in (top if isinstance(top, list) else []) if isinstance(t, dict)]
            yield _logprob(token, tuple(_logprob(rival) for rival in rivals))


def _logprob(token: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    value, text, data = token.get("logprob"), token.get("token"), token.get("bytes")
    known = isinstance(data, list) and all(isinstance(b, int) and 0 <= b <= 255 for b in data)  # noqa: PLR2004 - a byte
    return TokenLogprob(
        text if isinstance(text, str) else "",
        float(value) if isinstance(value, int | float) else float("-inf"),
        top=top,
        data=bytes(data) if known and isinstance(data, list) else None,
    )


def _hashable(value: object) -> object:
    return value if isinstance(value, str) else None
