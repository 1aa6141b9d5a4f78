"""Finding markers in text that comes in pieces, wherever the pieces are cut. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LAYOUT = " \t\r\n"
"""White space that templates put around markers."""


def pattern_of(markers: Sequence[str]) -> re.Pattern[str]:
    """Matches the first of `markers`. None of them may lie within another."""
    return re.compile("|".join(re.escape(marker) for marker in markers))


def beginning(text: str, markers: Sequence[str]) -> int:
    """The length of the longest end of `text` that one of `markers` starts with.

    >>> beginning("so <thi", ["<think>"])
    4
    """
    longest = max(map(len, markers), default=1)
    for length in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(len(marker) > length and marker.startswith(tail) for marker in markers):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class Quote:
    """How a format delimits text in which markers mean nothing."""

    opens: str
    closes: str
    escapes: bool = False
    """Whether a backslash takes the next character's meaning away."""


class EndFinder:
    """Finds the marker that ends a tool call, but not one that is quoted within its arguments.

    Looks at every character once, however often it is asked. No opening quote may lie within the
    marker or another quote.
    """

    __slots__ = ("_end", "_inside", "_outside", "_position", "_quotes", "_within")

    def __init__(self, end: str, quotes: Sequence[Quote], start: int = 0) -> None:
        self._end = end
        self._quotes = {quote.opens: quote for quote in quotes}
        self._outside = pattern_of([end, *self._quotes])
        self._within = {
            quote: pattern_of([quote.closes, "\\"] if quote.escapes else [quote.closes])
            for quote in quotes
        }
        self._inside: Quote | None = None
        self._position = start

    def find(self, text: str) -> int | None:
        """Where the marker starts in `text`, which grows at its end from call to call."""
        while True:
            inside = self._inside
            pattern = self._outside if inside is None else self._within[inside]
            match = pattern.search(text, self._position)
            if match is None:
                longest = (
                    max(map(len, (self._end, *self._quotes)))
                    if inside is None
                    else len(inside.closes)
                )
                self._position = max(self._position, len(text) - longest + 1)
                return None
            found = match.group()
            self._position = match.end()
            if inside is None:
                if found == self._end:
                    return match.start()
                self._inside = self._quotes[found]
            elif found == "\\":
                self._position += 1
            else:
                self._inside = None


class Section:
    """Text of one kind, without the white space that borders on markers.

    That white space is the format's, not the author's: the line breaks after `</think>` do not
    make an answer start with empty lines. Between two parts of the text it stays.
    """

    __slots__ = ("_bordered", "_pending", "started")

    def __init__(self, *, bordered: bool = False) -> None:
        self._pending = ""
        self._bordered = bordered
        self.started = False
        """Whether anything but white space has come."""

    def add(self, text: str) -> str:
        """What can be shown after `text` has come: all but white space at the end."""
        text = self._pending + text
        shown = text.rstrip(LAYOUT)
        self._pending = text[len(shown) :]
        if not shown:
            return ""
        if self._bordered and not self.started:
            shown = shown.lstrip(LAYOUT)
        self.started = True
        self._bordered = False
        return shown

    def border(self) -> None:
        """A marker is here."""
        self._bordered = True

    def end(self) -> str:
        """The white space at the end of everything, unless a marker precedes it."""
        pending, self._pending = self._pending, ""
        return "" if self._bordered else pending
