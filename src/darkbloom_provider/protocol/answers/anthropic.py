"""Answers to Anthropic's messages requests: its event stream, or one `message`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from darkbloom_provider.protocol.answers.chat import Whole
from darkbloom_provider.protocol.answers.gathered import (
    AnswerReason,
    Gathered,
    TokenLogprob,
    answer_reason,
)
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.openai import FinishReason, event
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
    coalesced,
)

_REASONS: Final[Mapping[AnswerReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
}


@dataclass(slots=True)
class StreamedMessage:
    """Blocks of text, thought and tool use, one after another; each begins and ends."""

    id: str
    model: str
    blocks: int = 0
    open: str | None = None
    """The kind of the block that is open."""
    called: bool = False
    reason: AnswerReason = "stop"
    stop_sequence: str | None = field(default=None, repr=False)

    def start(self, prompt_tokens: int) -> list[str]:
        """`message_start`, with what the prompt costs."""
        message = _message(
            self.id, self.model, _Ending(), Usage(prompt_tokens=prompt_tokens, completion_tokens=0)
        )
        return [_event("message_start", {"message": message})]

    def pieces(
        self,
        pieces: Iterable[Piece],
        choice: int = 0,  # noqa: ARG002 — one interface for all shapes
        logprobs: Iterable[TokenLogprob] = (),  # noqa: ARG002 — the dialect has none
    ) -> list[str]:
        """Deltas, within blocks that open and close as the kind of text changes."""
        events: list[str] = []
        for piece in coalesced(pieces):
            match piece:
                case ContentDelta(text):
                    events += self._enter("text", {"type": "text", "text": ""})
                    events.append(self._delta({"type": "text_delta", "text": text}))
                case ReasoningDelta(text):
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                    events += self._enter("thinking", block)
                    events.append(self._delta({"type": "thinking_delta", "thinking": text}))
                case ToolCallStarted(_, identifier, name):
                    self.called = True
                    events += self._leave()
                    use = {"type": "tool_use", "id": identifier, "name": name, "input": {}}
                    events += self._enter("tool_use", use)
                case ToolCallArguments(_, fragment):
                    delta = {"type": "input_json_delta", "partial_json": fragment}
                    events.append(self._delta(delta))
                case ToolCallEnded():
                    events += self._leave()
        return events

    def finish(
        self,
        reason: FinishReason,
        choice: int = 0,  # noqa: ARG002 — one interface for all shapes
        stop_sequence: str | None = None,
    ) -> list[str]:
        """The end of the last block."""
        self.reason = answer_reason(reason, called=self.called)
        self.stop_sequence = stop_sequence
        return self._leave()

    def end(self, used: Usage) -> list[str]:
        """Why the message ended and what it cost, then its end."""
        delta = {
            "stop_reason": _stop_reason(self.reason, self.stop_sequence),
            "stop_sequence": self.stop_sequence,
        }
        return [
            _event("message_delta", {"delta": delta, "usage": _usage(used)}),
            _event("message_stop", {}),
        ]

    def _enter(self, kind: str, block: Mapping[str, object]) -> list[str]:
        if self.open == kind:
            return []
        events = self._leave()
        self.open = kind
        start = {"index": self.blocks, "content_block": block}
        return [*events, _event("content_block_start", start)]

    def _leave(self) -> list[str]:
        if self.open is None:
            return []
        self.open = None
        self.blocks += 1
        return [_event("content_block_stop", {"index": self.blocks - 1})]

    def _delta(self, delta: Mapping[str, object]) -> str:
        return _event("content_block_delta", {"index": self.blocks, "delta": delta})


@dataclass(slots=True)
class WholeMessage(Whole):
    """One event at the end.

    Not native: the network's coordinator passes on `chat.completion` objects only, so the answer is
    one that holds the message's own fields besides; it reads right as either.
    """

    native: bool = True

    def document(self, used: Usage) -> dict[str, Any]:
        """The whole answer."""
        said = self.choices.get(0) or Gathered()
        message = _message(
            self.id,
            self.model,
            _Ending(_stop_reason(said.reason, said.stop_sequence), said.stop_sequence),
            used,
            _blocks(said),
        )
        if self.native:
            return message
        # The zero-argument form of super() knows nothing of classes made anew for their slots.
        chat = Whole.document(self, used)
        return chat | message | {"usage": chat["usage"] | message["usage"]}


@dataclass(frozen=True, slots=True)
class _Ending:
    stop_reason: str | None = None
    stop_sequence: str | None = field(default=None, repr=False)


def _usage(used: Usage) -> dict[str, int]:
    return {"input_tokens": used.prompt_tokens, "output_tokens": used.completion_tokens}


def _message(
    identifier: str,
    model: str,
    ending: _Ending,
    used: Usage,
    content: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(content),
        "stop_reason": ending.stop_reason,
        "stop_sequence": ending.stop_sequence,
        "usage": _usage(used),
    }


def _blocks(said: Gathered) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if thought := "".join(said.reasoning):
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := "".join(said.content):
        blocks.append({"type": "text", "text": text})
    for call in said.calls:
        arguments = _arguments(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    # The dialect has room for an object only. What a foreign provider made of it is not lost.
    return arguments if isinstance(arguments, dict) else {"arguments": text}


def _stop_reason(reason: AnswerReason, stop_sequence: str | None) -> str:
    return "stop_sequence" if reason == "stop" and stop_sequence else _REASONS[reason]


def _event(kind: str, document: Mapping[str, object]) -> str:
    return f"event: {kind}\n{event({'type': kind, **document})}"
