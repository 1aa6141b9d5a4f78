"""The shape of an answer, chosen by its request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from darkbloom_provider.protocol.answers.anthropic import StreamedMessage, WholeMessage
from darkbloom_provider.protocol.answers.chat import StreamedChat, Whole
from darkbloom_provider.protocol.answers.completions import StreamedCompletion, WholeCompletion
from darkbloom_provider.protocol.answers.gathered import TokenLogprob
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.openai import FinishReason
from darkbloom_provider.protocol.output import Piece
from darkbloom_provider.protocol.requests.request import TextRequest


class Answer(Protocol):
    """Shapes one answer. Every method gives the events to send, one to a chunk, often none.

    `start` comes first, then `pieces` of all choices as they come, `finish` once for each choice,
    and `end` last.
    """

    def start(self, prompt_tokens: int) -> list[str]:
        """The prompt was read."""
        ...

    def pieces(
        self, pieces: Iterable[Piece], choice: int = 0, logprobs: Iterable[TokenLogprob] = ()
    ) -> list[str]:
        """More of a choice; `logprobs` of its tokens, also of those whose text is held back."""
        ...

    def finish(
        self, reason: FinishReason, choice: int = 0, stop_sequence: str | None = None
    ) -> list[str]:
        """A choice ended, `stop_sequence` being what it ended at if the consumer named it."""
        ...

    def end(self, used: Usage) -> list[str]:
        """All choices ended."""
        ...


def answer_to(
    request: TextRequest, *, request_id: str, created: int, native: bool = False
) -> Answer:
    """The shape that `request` asked for.

    Args:
        request: What is answered.
        request_id: Part of the answer's id.
        created: In Unix seconds.
        native: Whether what is not a chat may be answered whole in its own shape. The network's
            coordinator would make it an empty answer; streams are always in their own shape.
    """
    model = request.model
    match request.dialect, request.stream:
        case "chat", True:
            return StreamedChat(f"chatcmpl-{request_id}", created, model, request.include_usage)
        case "chat", _:
            return Whole(f"chatcmpl-{request_id}", created, model)
        case "completions", True:
            return StreamedCompletion(f"cmpl-{request_id}", created, model, request.include_usage)
        case "completions", _:
            return WholeCompletion(f"cmpl-{request_id}", created, model, native=native)
        case "messages", True:
            return StreamedMessage(f"msg_{request_id}", model)
        case _:
            return WholeMessage(f"msg_{request_id}", created, model, native=native)
