"""Generated text as the events a consumer reads. Pure: text in, event lines out.

One event is one chunk on the wire, because the network's coordinator does not look into a chunk
that holds several. Shapes are OpenAI's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from darkbloom_provider.protocol import openai
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.openai import ChatRequest, FinishReason


class Answer(Protocol):
    """Shapes one answer."""

    def delta(self, text: str) -> Iterator[str]:
        """The events to send for a piece of text."""
        ...

    def end(self, finish_reason: FinishReason, usage: Usage) -> Iterator[str]:
        """The events that end the answer."""
        ...


def answer_to(request: ChatRequest, *, request_id: str, created: int) -> Answer:
    """The shape that `request` asked for. `created` is in Unix seconds."""
    shape = StreamedAnswer if request.stream else WholeAnswer
    return shape(
        id=f"chatcmpl-{request_id}",
        created=created,
        model=request.model,
        include_usage=request.include_usage,
    )


@dataclass(slots=True)
class _Shape:
    id: str
    created: int
    model: str
    include_usage: bool


@dataclass(slots=True)
class StreamedAnswer(_Shape):
    """`chat.completion.chunk` events: the role with the first, the reason in the last."""

    begun: bool = False

    def delta(self, text: str) -> Iterator[str]:
        """One event per piece of text."""
        role = {} if self.begun else {"role": "assistant"}
        self.begun = True
        yield self._chunk({**role, "content": text})

    def end(self, finish_reason: FinishReason, usage: Usage) -> Iterator[str]:
        """The finishing event and, if asked for, the usage event."""
        if not self.begun:
            yield from self.delta("")
        yield self._chunk({}, finish_reason)
        if self.include_usage:
            yield openai.usage_event(
                id=self.id,
                created=self.created,
                model=self.model,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
            )

    def _chunk(self, delta: dict[str, object], reason: FinishReason | None = None) -> str:
        return openai.chunk_event(
            id=self.id,
            created=self.created,
            model=self.model,
            delta=delta,
            finish_reason=reason,
        )


@dataclass(slots=True)
class WholeAnswer(_Shape):
    """One `chat.completion` event at the end."""

    pieces: list[str] = field(default_factory=list, repr=False)

    def delta(self, text: str) -> Iterator[str]:
        """Nothing: the text is kept for the end."""
        self.pieces.append(text)
        yield from ()

    def end(self, finish_reason: FinishReason, usage: Usage) -> Iterator[str]:
        """The whole answer. Exactly one event, or the coordinator would rebuild it with losses."""
        yield openai.completion_event(
            id=self.id,
            created=self.created,
            model=self.model,
            content="".join(self.pieces),
            finish_reason=finish_reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
