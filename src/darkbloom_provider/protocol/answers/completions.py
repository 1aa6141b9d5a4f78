"""Answers to completions requests: `text_completion` objects, streamed or whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from darkbloom_provider.protocol.answers.chat import Whole
from darkbloom_provider.protocol.answers.gathered import Gathered, TokenLogprob
from darkbloom_provider.protocol.messages import Usage
from darkbloom_provider.protocol.openai import FinishReason, event, usage
from darkbloom_provider.protocol.output import ContentDelta, Piece, ReasoningDelta

_OBJECT = "text_completion"


@dataclass(slots=True)
class _Choice:
    logprobs: list[TokenLogprob] = field(default_factory=list, repr=False)
    """Of tokens whose text is still held back."""
    offset: int = 0
    """Characters of the tokens told so far."""


@dataclass(slots=True)
class StreamedCompletion:
    """One event per stretch of text, one for each choice's end."""

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
        """One event, if there is text."""
        self.choices.setdefault(choice, _Choice()).logprobs += logprobs
        text = "".join(p.text for p in pieces if isinstance(p, ContentDelta | ReasoningDelta))
        return [self._chunk(choice, text)] if text else []

    def finish(
        self,
        reason: FinishReason,
        choice: int = 0,
        stop_sequence: str | None = None,  # noqa: ARG002 — one interface for all shapes
    ) -> list[str]:
        """The event that ends a choice."""
        return [self._chunk(choice, "", reason)]

    def end(self, used: Usage) -> list[str]:
        """The usage, if the consumer asked for it."""
        if not self.include_usage:
            return []
        counted = usage(used.prompt_tokens, used.completion_tokens)
        return [event(self._envelope([]) | {"usage": counted})]

    def _chunk(self, index: int, text: str, reason: str | None = None) -> str:
        state = self.choices.setdefault(index, _Choice())
        choice: dict[str, Any] = {"index": index, "text": text}
        if state.logprobs:
            choice["logprobs"] = _logprobs_object(state.logprobs, state.offset)
            state.offset += sum(len(token.text) for token in state.logprobs)
            state.logprobs = []
        choice["finish_reason"] = reason
        return event(self._envelope([choice]))

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, object]:
        return {
            "id": self.id,
            "object": _OBJECT,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


@dataclass(slots=True)
class WholeCompletion(Whole):
    """One event at the end.

    Not native: the network's coordinator passes on `chat.completion` objects only, so the answer is
    one, whose choices hold their `text` besides; it reads right as either.
    """

    native: bool = True

    def document(self, used: Usage) -> dict[str, Any]:
        """The whole answer."""
        own = [_whole_choice(i, said) for i, said in sorted(self.choices.items())]
        # The zero-argument form of super() knows nothing of classes made anew for their slots.
        chat = Whole.document(self, used)
        if not self.native:
            pairs = zip(chat["choices"], own, strict=True)
            return chat | {"choices": [theirs | ours for theirs, ours in pairs]}
        return chat | {"object": _OBJECT, "choices": own}


def _whole_choice(index: int, said: Gathered) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": "".join([*said.reasoning, *said.content]),
        "finish_reason": said.reason,
    }
    if said.logprobs:
        choice["logprobs"] = _logprobs_object(said.logprobs, 0)
    return choice


def _logprobs_object(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets: list[int] = []
    for token in logprobs:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in logprobs],
        "token_logprobs": [token.finite for token in logprobs],
        "top_logprobs": [{t.text: t.finite for t in token.top} for token in logprobs],
        "text_offset": offsets,
    }
