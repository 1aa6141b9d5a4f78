"""Answers to chat requests: `chat.completion.chunk` events, or one `chat.completion`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from darkbloom_provider.protocol.answers.gathered import (
    Gathered,
    TokenLogprob,
    ToolCall,
    answer_reason,
)
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.openai import FinishReason, event, usage, usage_event
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
    coalesced,
)

REASONING: Final = "reasoning"
"""The key of thoughts. The network's coordinator renames `reasoning_content` to this, rewriting
each such event; under this name it relays events as they are, so that consumers of any kind of
endpoint find thoughts in one place, and what was hashed here is what they get."""


@dataclass(slots=True)
class _Choice:
    begun: bool = False
    called: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list, repr=False)
    """Of tokens whose text is still held back."""


@dataclass(slots=True)
class StreamedChat:
    """The role with the first event of a choice, the reason in its last."""

    id: str
    created: int
    model: str
    include_usage: bool = False
    choices: dict[int, _Choice] = field(default_factory=dict)

    def start(self, prompt_tokens: int) -> list[str]:  # noqa: ARG002 — one interface for all shapes
        """Nothing: the first words do not wait for an event of their own."""
        return []

    def pieces(
        self, pieces: Iterable[Piece], choice: int = 0, logprobs: Iterable[TokenLogprob] = ()
    ) -> list[str]:
        """One event per piece; a call's name and arguments go together."""
        state = self._choice(choice)
        state.logprobs += logprobs
        return [self._chunk(choice, delta) for delta in self._deltas(state, pieces)]

    def finish(
        self,
        reason: FinishReason,
        choice: int = 0,
        stop_sequence: str | None = None,  # noqa: ARG002 — one interface for all shapes
    ) -> list[str]:
        """The event that ends a choice."""
        state = self._choice(choice)
        events = [] if state.begun else [self._chunk(choice, {"content": ""})]
        said = answer_reason(reason, called=state.called)
        return [*events, self._chunk(choice, {}, said)]

    def end(self, used: Usage) -> list[str]:
        """The usage, if the consumer asked for it."""
        if not self.include_usage:
            return []
        return [
            usage_event(
                id=self.id,
                created=self.created,
                model=self.model,
                prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens,
            )
        ]

    def _choice(self, index: int) -> _Choice:
        return self.choices.setdefault(index, _Choice())

    def _deltas(self, state: _Choice, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        begun: int | None = None
        for piece in coalesced(pieces):
            match piece:
                case ContentDelta(text):
                    deltas.append({"content": text})
                case ReasoningDelta(text):
                    deltas.append({REASONING: text})
                case ToolCallStarted(index, identifier, name):
                    state.called = True
                    begun = index
                    call = call_object(ToolCall(identifier, name))
                    deltas.append({"tool_calls": [{"index": index, **call}]})
                case ToolCallArguments(index, fragment) if index == begun:
                    deltas[-1]["tool_calls"][0]["function"]["arguments"] = fragment
                    begun = None
                case ToolCallArguments(index, fragment):
                    function = {"arguments": fragment}
                    deltas.append({"tool_calls": [{"index": index, "function": function}]})
                case ToolCallEnded():
                    pass
        return deltas

    def _chunk(self, index: int, delta: Mapping[str, object], reason: str | None = None) -> str:
        state = self._choice(index)
        role = {} if state.begun else {"role": "assistant"}
        state.begun = True
        choice: dict[str, object] = {"index": index, "delta": {**role, **delta}}
        if state.logprobs:
            choice["logprobs"] = logprobs_object(state.logprobs)
            state.logprobs = []
        choice["finish_reason"] = reason
        return event(
            {
                "id": self.id,
                "object": "chat.completion.chunk",
                "created": self.created,
                "model": self.model,
                "choices": [choice],
            }
        )


@dataclass(slots=True)
class Whole:
    """Keeps an answer for its end. Exactly one event, or the coordinator would rebuild it."""

    id: str
    created: int
    model: str
    choices: dict[int, Gathered] = field(default_factory=dict, repr=False)

    def start(self, prompt_tokens: int) -> list[str]:  # noqa: ARG002 — one interface for all shapes
        """Nothing yet."""
        return []

    def pieces(
        self, pieces: Iterable[Piece], choice: int = 0, logprobs: Iterable[TokenLogprob] = ()
    ) -> list[str]:
        """Nothing yet."""
        self.choices.setdefault(choice, Gathered()).add(pieces, logprobs)
        return []

    def finish(
        self, reason: FinishReason, choice: int = 0, stop_sequence: str | None = None
    ) -> list[str]:
        """Nothing yet."""
        self.choices.setdefault(choice, Gathered()).finish(reason, stop_sequence)
        return []

    def end(self, used: Usage) -> list[str]:
        """The whole answer."""
        return [event(self.document(used))]

    def document(self, used: Usage) -> dict[str, Any]:
        """The answer as a chat's, which carries every dialect's text."""
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [_whole_choice(i, said) for i, said in sorted(self.choices.items())],
            "usage": usage(used.prompt_tokens, used.completion_tokens),
        }


def call_object(call: ToolCall) -> dict[str, Any]:
    """A tool call in OpenAI's form."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def logprobs_object(logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Log probabilities in the form of chat answers."""
    return {
        "content": [
            {**_token(token), "top_logprobs": [_token(other) for other in token.top]}
            for token in logprobs
        ]
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    data = token.text.encode() if token.data is None else token.data
    return {"token": token.text, "logprob": token.finite, "bytes": list(data)}


def _whole_choice(index: int, said: Gathered) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said.content)}
    if said.reasoning:
        message[REASONING] = "".join(said.reasoning)
    if said.calls:
        message["tool_calls"] = [call_object(call) for call in said.calls]
    choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": said.reason}
    if said.logprobs:
        choice["logprobs"] = logprobs_object(said.logprobs)
    return choice
