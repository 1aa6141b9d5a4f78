"""Answers to Responses requests: its event stream, or one `response`.

Source: the network's Responses replies, with the events that OpenAI's own client needs to follow a
stream. Text is told as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from darkbloom_provider.protocol.answers.chat import Whole, logprobs_object
from darkbloom_provider.protocol.answers.gathered import (
    AnswerReason,
    Gathered,
    TokenLogprob,
    ToolCall,
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

Kind = Literal["reasoning", "message", "function_call"]
Status = Literal["in_progress", "completed", "incomplete"]

_PREFIXES: Final[Mapping[Kind, str]] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_INCOMPLETE: Final[Mapping[AnswerReason, str]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
_REPEATED: Final[Mapping[str, object]] = {
    # What a response says again of its request, and what it means where that said nothing.
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}


def repeated(document: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a request that its response repeats."""
    told = {name: document.get(name) for name in _REPEATED}
    return {name: _REPEATED[name] if value is None else value for name, value in told.items()}


@dataclass(slots=True)
class _Item:
    """One item of the output."""

    kind: Kind
    id: str
    call: ToolCall = field(default_factory=lambda: ToolCall("", ""), repr=False)
    texts: list[str] = field(default_factory=list, repr=False)
    logprobs: list[TokenLogprob] = field(default_factory=list, repr=False)

    def part(self, text: str) -> dict[str, Any]:
        """The part that holds the text."""
        if self.kind == "reasoning":
            return {"type": "summary_text", "text": text}
        logprobs = logprobs_object(self.logprobs)["content"] if text else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def document(self, status: Status) -> dict[str, Any]:
        """The item as it is now."""
        text = "".join(self.texts)
        head = {"type": self.kind, "id": self.id, "status": status}
        match self.kind:
            case "reasoning":
                # Providers give thoughts as they are: this is the key that clients show.
                return head | {"summary": [self.part(text)] if status != "in_progress" else []}
            case "message":
                content = [self.part(text)] if status != "in_progress" else []
                return head | {"role": "assistant", "content": content}
            case _:
                call = {"call_id": self.call.id, "name": self.call.name}
                return head | call | {"arguments": text}


@dataclass(slots=True)
class _Output:
    """The items of one response, named after the job."""

    job: str
    items: list[_Item] = field(default_factory=list, repr=False)

    def add(self, kind: Kind, call: ToolCall | None = None) -> _Item:
        identifier = f"{_PREFIXES[kind]}_{self.job}_{len(self.items)}"
        self.items.append(_Item(kind, identifier, call or ToolCall("", "")))
        return self.items[-1]

    @property
    def thought(self) -> bool:
        return any(item.kind == "reasoning" for item in self.items)

    @property
    def answered(self) -> bool:
        return any(item.kind != "reasoning" for item in self.items)


@dataclass(frozen=True, slots=True)
class _Envelope:
    """What is the same in every state of one response."""

    id: str
    created: int
    model: str
    repeated: Mapping[str, Any] = field(repr=False)

    def document(
        self,
        output: _Output,
        reason: AnswerReason | None = None,
        used: Usage | None = None,
    ) -> dict[str, Any]:
        """The response; `reason` None while it goes on."""
        cut = None if reason is None else _INCOMPLETE.get(reason)
        status: Status = "in_progress" if reason is None else "incomplete" if cut else "completed"
        last = len(output.items) - 1
        return {
            **self.repeated,
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "model": self.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": cut} if cut else None,
            "previous_response_id": None,
            "store": False,
            "output": [
                item.document(status if position == last else "completed")
                for position, item in enumerate(output.items)
            ],
            "usage": None if used is None else _usage(used, thought=output.thought),
        }


class StreamedResponse:
    """Items one after another; each is added, grows, and is done. No `[DONE]` follows."""

    def __init__(self, job: str, created: int, model: str, repeated: Mapping[str, Any]) -> None:
        """`repeated` may still grow: what is in it at the end is in the last event."""
        self._envelope = _Envelope(job, created, model, repeated)
        self._output = _Output(job)
        self._open: _Item | None = None
        self._reason: AnswerReason = "stop"
        self._called = False
        self._sequence = 0

    def start(self, prompt_tokens: int) -> list[str]:  # noqa: ARG002 — one interface for all shapes
        """`response.created`."""
        return [self._event("response.created", response=self._envelope.document(self._output))]

    def pieces(
        self,
        pieces: Iterable[Piece],
        choice: int = 0,  # noqa: ARG002 — one interface for all shapes
        logprobs: Iterable[TokenLogprob] = (),
    ) -> list[str]:
        """Deltas, within items that open and close as the kind of text changes."""
        events: list[str] = []
        waiting = list(logprobs)
        for piece in coalesced(pieces):
            match piece:
                case ContentDelta(text):
                    events += self._enter("message")
                    events.append(self._text_delta(text, waiting))
                    waiting = []
                case ReasoningDelta(text):
                    events += self._enter("reasoning")
                    events.append(self._delta("response.reasoning_summary_text", text))
                case ToolCallStarted(_, identifier, name):
                    self._called = True
                    events += self._leave("completed")
                    events += self._enter("function_call", ToolCall(identifier, name))
                case ToolCallArguments(_, fragment):
                    events.append(self._delta("response.function_call_arguments", fragment))
                case ToolCallEnded():
                    events += self._leave("completed")
        return events

    def finish(
        self,
        reason: FinishReason,
        choice: int = 0,  # noqa: ARG002 — one interface for all shapes
        stop_sequence: str | None = None,  # noqa: ARG002 — the dialect does not tell it
    ) -> list[str]:
        """The end of the last item. There is a message, be it empty, where nothing was called."""
        self._reason = answer_reason(reason, called=self._called)
        events = [] if self._output.answered else self._enter("message")
        return events + self._leave("incomplete" if self._reason in _INCOMPLETE else "completed")

    def end(self, used: Usage) -> list[str]:
        """`response.completed`, also where a limit has cut the answer: `status` tells."""
        document = self._envelope.document(self._output, self._reason, used)
        return [self._event("response.completed", response=document)]

    def _enter(self, kind: Kind, call: ToolCall | None = None) -> list[str]:
        if self._open is not None and self._open.kind == kind:
            return []
        events = self._leave("completed")
        item = self._open = self._output.add(kind, call)
        added = {"output_index": self._index, "item": item.document("in_progress")}
        events.append(self._event("response.output_item.added", **added))
        if name := _PARTS.get(kind):
            events.append(self._about(f"response.{name}.added", **_place(kind), part=item.part("")))
        return events

    def _leave(self, status: Status) -> list[str]:
        item = self._open
        if item is None:
            return []
        self._open = None
        text, place = "".join(item.texts), _place(item.kind)
        if item.kind == "function_call":
            done = {"name": item.call.name, "arguments": text}
            events = [self._about("response.function_call_arguments.done", **done)]
        else:
            part = item.part(text)
            done = {key: part[key] for key in ("text", "logprobs") if key in part}
            events = [
                self._about(f"response.{_TEXTS[item.kind]}.done", **place, **done),
                self._about(f"response.{_PARTS[item.kind]}.done", **place, part=part),
            ]
        ended = {"output_index": self._index, "item": item.document(status)}
        return [*events, self._event("response.output_item.done", **ended)]

    def _text_delta(self, text: str, logprobs: list[TokenLogprob]) -> str:
        self._output.items[-1].logprobs += logprobs
        told = logprobs_object(logprobs)["content"]
        return self._delta("response.output_text", text, logprobs=told)

    def _delta(self, name: str, text: str, **more: object) -> str:
        item = self._output.items[-1]
        item.texts.append(text)
        return self._about(f"{name}.delta", **_place(item.kind), delta=text, **more)

    def _about(self, kind: str, **fields: object) -> str:
        item = self._output.items[-1]
        return self._event(kind, item_id=item.id, output_index=self._index, **fields)

    @property
    def _index(self) -> int:
        return len(self._output.items) - 1

    def _event(self, kind: str, **fields: object) -> str:
        number = self._sequence
        self._sequence += 1
        return event({"type": kind, "sequence_number": number, **fields})


_TEXTS: Final[Mapping[Kind, str]] = {
    "reasoning": "reasoning_summary_text",
    "message": "output_text",
}
_PARTS: Final[Mapping[Kind, str]] = {
    "reasoning": "reasoning_summary_part",
    "message": "content_part",
}


def _place(kind: Kind) -> dict[str, int]:
    match kind:
        case "reasoning":
            return {"summary_index": 0}
        case "message":
            return {"content_index": 0}
        case _:
            return {}


@dataclass(slots=True)
class WholeResponse(Whole):
    """One `response` at the end: thoughts, then the message, then calls."""

    repeated: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def document(self, used: Usage) -> dict[str, Any]:
        """The whole answer."""
        said = self.choices.get(0) or Gathered()
        output = _Output(self.id)
        if said.reasoning:
            output.add("reasoning").texts += said.reasoning
        if any(said.content) or not said.calls:
            message = output.add("message")
            message.texts += said.content
            message.logprobs += said.logprobs
        for call in said.calls:
            output.add("function_call", call).texts.append(call.arguments)
        envelope = _Envelope(self.id, self.created, self.model, self.repeated)
        return envelope.document(output, said.reason, used)


def _usage(used: Usage, *, thought: bool) -> dict[str, Any]:
    # Providers count no thoughts by themselves. The network's rule: all or none of the answer.
    reasoning = used.completion_tokens if thought else 0
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
