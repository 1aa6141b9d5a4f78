"""From tokens to text, piece by piece: never half a character, never past a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What tokenizers decode the bytes of an unfinished UTF-8 character to."""

Decode = Callable[[Sequence[int]], str]
"""The text of a run of tokens."""

_MAX_PENDING = 16
"""Tokens after which bytes that never became a character are given up on. A character has at most
four bytes, and a token at least one; the rest is room for models that write U+FFFD itself."""
_CONTEXT = 6
"""Tokens of the prompt's end that are decoded along, see `Detokenizer`."""


class Detokenizer:
    """Turns one request's tokens into text as they come.

    A tokenizer may write a token differently at the start of a text than inside one (the leading
    space), so new tokens are decoded together with the ones before them and the known part is cut
    off. Text that ends in an unfinished character is held back until it is finished.

    Args:
        decode: The tokenizer's decoder. It must not clean up spaces.
        prompt: The prompt's tokens; the end of it is the context of the first token.
    """

    __slots__ = ("_decode", "_emitted", "_known", "_prefix", "_read", "_tokens")

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(prompt[-_CONTEXT:])
        self._prefix = 0
        self._read = len(self._tokens)
        self._known = decode(self._tokens) if self._tokens else ""
        self._emitted = 0

    def add(self, token: int) -> str:
        """The text that became certain with `token`; often a word, sometimes nothing."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._prefix :])[len(self._known) :]
        whole = text.rstrip(REPLACEMENT)
        pending = len(whole) < len(text)
        if pending and len(self._tokens) - self._read <= _MAX_PENDING:
            piece = whole[self._emitted :]
            self._emitted = max(self._emitted, len(whole))
            return piece
        piece = text[self._emitted :]
        self._advance(restart=pending)
        return piece

    def _advance(self, *, restart: bool) -> None:
        # What was new becomes the context of what follows; older tokens are forgotten.
        self._tokens = [] if restart else self._tokens[self._read :]
        self._prefix = 0
        self._read = len(self._tokens)
        self._known = self._decode(self._tokens) if self._tokens else ""
        self._emitted = 0


class StopMatcher:
    """Cuts a text at the first stop string, wherever the pieces it comes in are cut.

    The match that is complete first counts; of several that end together, the longest. Text that
    may still turn out to be the beginning of a stop string is held back.
    """

    __slots__ = ("_held", "_longest", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None
        """The stop string that matched."""

    @property
    def matched(self) -> bool:
        """Whether one did."""
        return self.found is not None

    @property
    def holding(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def feed(self, text: str) -> str:
        """The text that may be shown after `text` has come. Once `matched`, always empty."""
        if self.matched or not text:
            return ""
        buffer = self._held + text
        match = self._find(buffer)
        if match is not None:
            cut, self.found = match
            self._held = ""
            return buffer[:cut]
        keep = self._beginning(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _find(self, buffer: str) -> tuple[int, str] | None:
        found = [
            (at + len(stop), at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0
        ]
        return min(found)[1:] if found else None

    def _beginning(self, buffer: str) -> int:
        """The length of the longest end of `buffer` that a stop string starts with."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            tail = buffer[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stops):
                return length
        return 0
