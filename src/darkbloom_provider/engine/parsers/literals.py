"""Values and calls as models write them when not in JSON: Python's literals, Gemma's arguments.

Nothing is evaluated. Python's own reader of literals is not used: deep nesting can bring it down,
and its warnings quote what they read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

MAX_DEPTH = 64

_CONSTANTS = {"True": True, "true": True, "False": False, "false": False}
_NONE = {"None", "null"}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NAME = re.compile(r"[\w.-]+")
_WORD = re.compile(r"[^,\[\]{}()]+")
_BARE = re.compile(r"[^,\[\]{}]+")
_SPACE = re.compile(r"\s*")
_BREAKS = re.compile(r"[\s;]*")
_STRING = {
    quote: re.compile(rf"(?:[^\\]|\\.)*?{quote}", re.DOTALL)
    for quote in ('"""', "'''", '"', "'")
}  # fmt: skip
_ESCAPE = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\x([0-9a-fA-F]{2})|\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_CLOSING = {"[": "]", "(": ")"}


class LiteralError(ValueError):
    """The text is not what it should be."""


def read_literal(text: str) -> object:
    """The value of one literal: text, number, truth, nothing, list, tuple or dict of them.

    Raises:
        LiteralError: The text is no literal.
    """
    reader = LiteralReader(text)
    value = reader.value()
    reader.expect_end()
    return value


class LiteralReader:
    """Reads literals one after another.

    Args:
        text: What is read.
        raw: Delimiters of text without escapes, such as Gemma's `<|"|>`.
        bare: Whether text may stand without delimiters.
    """

    def __init__(self, text: str, *, raw: Sequence[str] = (), bare: bool = False) -> None:
        self._text = text
        self._raw = raw
        self._bare = bare
        self._at = 0

    def value(self, depth: int = MAX_DEPTH) -> object:
        """The value that starts here.

        Raises:
            LiteralError: None does, or it is nested too deeply.
        """
        self._skip(_SPACE)
        if not depth:
            raise LiteralError("nested too deeply")
        string = self._string()
        if string is not None:
            return string
        for opens, closes in _CLOSING.items():
            if self.take(opens):
                return self._list(closes, depth)
        if self._text.startswith("{", self._at):
            return self.members(depth)
        return self._word()

    def members(self, depth: int = MAX_DEPTH) -> dict[str, Any]:
        """The `{key: value, …}` that starts here; keys with or without quotes."""
        self._expect("{")
        members: dict[str, Any] = {}
        while not self.take("}"):
            key = self._string()
            if key is None:
                key = self._match(_NAME)
            self._expect(":")
            members[key] = self.value(depth - 1)
            if not self.take(","):
                self._expect("}")
                break
        return members

    def call(self) -> tuple[str, dict[str, Any]]:
        """The Python call `name(key=value, …)` that starts here, within `print()` or not."""
        name = self._match(_NAME)
        self._expect("(")
        printed = name == "print"
        if printed:
            name = self._match(_NAME)
            self._expect("(")
        arguments = self._keywords()
        if printed:
            self._expect(")")
        return name, arguments

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        """All calls up to the end: in one list, or one after another."""
        found: list[tuple[str, dict[str, Any]]] = []
        listed = self.take("[")
        while not (self.take("]") if listed else self._done()):
            found.append(self.call())
            if listed and not self.take(","):
                self._expect("]")
                break
        self.expect_end()
        return found

    def take(self, expected: str) -> bool:
        """Read `expected` if it is next, white space aside."""
        self._skip(_SPACE)
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def name(self) -> str:
        """The name that starts here."""
        return self._match(_NAME)

    def expect_end(self) -> None:
        """Raise `LiteralError` unless everything was read."""
        if not self._done():
            raise LiteralError("something follows")

    def _keywords(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        while not self.take(")"):
            key = self._match(_NAME)
            self._expect("=")
            arguments[key] = self.value()
            if not self.take(","):
                self._expect(")")
                break
        return arguments

    def _done(self) -> bool:
        self._skip(_BREAKS)
        return self._at >= len(self._text)

    def _list(self, closes: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.take(closes):
            items.append(self.value(depth - 1))
            if not self.take(","):
                self._expect(closes)
                break
        return items

    def _string(self) -> str | None:
        for delimiter in self._raw:
            if self.take(delimiter):
                end = self._text.find(delimiter, self._at)
                if end < 0:
                    raise LiteralError("text without an end")
                value = self._text[self._at : end]
                self._at = end + len(delimiter)
                return value
        for delimiter, pattern in _STRING.items():
            if self.take(delimiter):
                return _ESCAPE.sub(_unescaped, self._match(pattern)[: -len(delimiter)])
        return None

    def _word(self) -> object:
        word = self._match(_BARE if self._bare else _WORD).strip()
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word in _NONE:
            return None
        if _NUMBER.fullmatch(word):
            try:
                number: object = json.loads(word)
            except ValueError:
                raise LiteralError("a number of too many digits") from None
            return number
        if self._bare and word:
            return word
        raise LiteralError("no literal")

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise LiteralError("something else was expected")
        self._at = match.end()
        return match.group()

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _expect(self, expected: str) -> None:
        if not self.take(expected):
            raise LiteralError(f"{expected} was expected")
        self._skip(_SPACE)


def _unescaped(match: re.Match[str]) -> str:
    units, byte, character = match.groups()
    if units is not None:
        data = bytes.fromhex(units.replace("\\u", ""))
        return data.decode("utf-16-be", "replace")
    if byte is not None:
        return chr(int(byte, 16))
    if character in _ESCAPED:
        return _ESCAPED[character]
    return str(character) if character in "\\/\"'" else f"\\{character}"
