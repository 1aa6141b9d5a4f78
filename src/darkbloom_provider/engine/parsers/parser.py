"""What every parser is, and the one for models without markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from darkbloom_provider.engine.parsers.arguments import Call
from darkbloom_provider.protocol.output import (
    ContentDelta,
    Piece,
    ToolCallArguments,
    ToolCallEnded,
    ToolCallStarted,
)

CallId = Callable[[int], str]
"""The id of an answer's call with this index. Unique over a conversation, not only an answer."""


class Parser(Protocol):
    """Reads one answer. Neither method raises, whatever the text."""

    def feed(self, text: str) -> list[Piece]:
        """What is certain after `text` has come."""
        ...

    def finish(self) -> list[Piece]:
        """The rest, when no more text will come."""
        ...


class PlainParser:
    """Everything is content."""

    def feed(self, text: str) -> list[Piece]:
        """The text, at once."""
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Piece]:
        """Nothing: nothing is held back."""
        return []


class CallNumbers:
    """Numbers an answer's calls and turns them into pieces."""

    __slots__ = ("_call_id", "_next")

    def __init__(self, call_id: CallId) -> None:
        self._call_id = call_id
        self._next = 0

    def pieces(self, calls: list[Call]) -> list[Piece]:
        """The pieces of whole calls."""
        pieces: list[Piece] = []
        for call in calls:
            index = self._next
            self._next += 1
            pieces += (
                ToolCallStarted(index, self._call_id(index), call.name),
                ToolCallArguments(index, call.arguments),
                ToolCallEnded(index),
            )
        return pieces
