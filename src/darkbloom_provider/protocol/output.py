"""What a model says, in pieces: answer, thoughts and tool calls. The border of parsers and shapes.

A parser in the engine makes pieces of text; the shapes of the dialects make events of pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A call of one of the consumer's tools begins."""

    index: int
    """0, 1, 2, … within one answer, without gaps."""
    id: str
    name: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments. All fragments of a call together are one JSON object."""

    index: int
    json_fragment: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolCallEnded:
    """A call is whole."""

    index: int


Piece = ContentDelta | ReasoningDelta | ToolCallStarted | ToolCallArguments | ToolCallEnded


def coalesced(pieces: Iterable[Piece]) -> list[Piece]:
    """The same pieces with neighbours of one kind joined and empty text left out."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        match last, piece:
            case (_, ContentDelta("") | ReasoningDelta("") | ToolCallArguments(_, "")):
                pass
            case ContentDelta(before), ContentDelta(text):
                joined[-1] = ContentDelta(before + text)
            case ReasoningDelta(before), ReasoningDelta(text):
                joined[-1] = ReasoningDelta(before + text)
            case ToolCallArguments(index, before), ToolCallArguments(same, text) if same == index:
                joined[-1] = ToolCallArguments(index, before + text)
            case _:
                joined.append(piece)
    return joined
