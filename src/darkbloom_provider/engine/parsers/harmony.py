"""The channels of gpt-oss: every message of an answer names its channel before its text.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`. What is said
in `analysis` is thought; a message `to=functions.<name>` is a tool call; the rest is the answer.
Source: OpenAI's harmony response format.
"""

from __future__ import annotations

import re

from darkbloom_provider.engine.parsers.arguments import Call, Tools, call
from darkbloom_provider.engine.parsers.parser import CallId, CallNumbers
from darkbloom_provider.engine.parsers.scan import Section, beginning, pattern_of
from darkbloom_provider.protocol.output import ContentDelta, Piece, ReasoningDelta, coalesced

_MESSAGE = "<|message|>"
_OPENING = ("<|channel|>", "<|start|>")
_CLOSING = ("<|end|>", "<|call|>", "<|return|>")
_MARKERS = (*_OPENING, *_CLOSING)
_ANY = pattern_of(_MARKERS)
_MAX_HEADER = 256
"""Characters of a message's header; a longer one is none."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_UNFINISHED = re.compile(r"<\|(?:start|channel)\|>[\w\s=.:<>|-]*")
"""A header that was cut short: it says nothing yet."""
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


class HarmonyParser:
    """Reads one answer. The prompt ends in `<|start|>assistant`.

    Args:
        tools: What the request offers. Empty: nothing is read as a call.
        call_id: Names a call by its index.
    """

    def __init__(self, *, tools: Tools, call_id: CallId) -> None:
        self._tools = tools
        self._numbers = CallNumbers(call_id)
        self._buffer = ""
        self._header: str | None = None
        """The header of the message being read, with its markers; None between messages."""
        self._channel = ""
        self._recipient: str | None = None
        self._body: list[str] = []
        """The arguments of a call, until they are whole."""
        self._between = Section()
        self._out: list[Piece] = []

    def feed(self, text: str) -> list[Piece]:
        """What is certain after `text` has come."""
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._given_out()

    def finish(self) -> list[Piece]:
        """The rest. A call without its closing marker counts if its arguments are whole."""
        rest, self._buffer = self._buffer, ""
        if self._header is not None or not _UNFINISHED.fullmatch(rest):
            self._say(rest)
        self._end_message("")
        self._out.append(ContentDelta(self._between.end()))
        return self._given_out()

    def _step(self) -> bool:
        """Take one decision; False if it needs more text."""
        if self._header is None and self._buffer.startswith(_OPENING):
            return self._read_header()
        match = _ANY.search(self._buffer)
        if match is None:
            self._say(self._take(len(self._buffer) - beginning(self._buffer, _MARKERS)))
            return False
        self._say(self._take(match.start()))
        # What opens the next message stays: it belongs to that message's header.
        closes = match.group() in _CLOSING
        self._end_message(self._take(match.end() - match.start()) if closes else "")
        return True

    def _read_header(self) -> bool:
        end = self._buffer.find(_MESSAGE, 0, _MAX_HEADER + len(_MESSAGE))
        if end < 0:
            if len(self._buffer) < _MAX_HEADER + len(_MESSAGE):
                return False
            # No header after all: its marker is text like any other.
            marker = next(m for m in _OPENING if self._buffer.startswith(m))
            self._say(self._take(len(marker)))
            return True
        header = self._take(end + len(_MESSAGE))
        channel = _CHANNEL.search(header)
        recipient = _RECIPIENT.search(header)
        self._header = header
        self._between.border()
        self._channel = channel[1] if channel else ""
        self._recipient = recipient[1] if recipient else None
        return True

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._header is None:
            # Between messages the format has nothing but, at most, white space.
            self._out.append(ContentDelta(self._between.add(text)))
        elif self._recipient is not None:
            self._body.append(text)
        elif self._channel == "analysis":
            self._out.append(ReasoningDelta(text))
        else:
            self._out.append(ContentDelta(text))

    def _end_message(self, marker: str) -> None:
        if self._header is not None and self._recipient is not None:
            body = "".join(self._body)
            found = self._call(self._recipient, body)
            if found is None:
                self._out.append(ContentDelta(self._header + body + marker))
            else:
                self._out += self._numbers.pieces([found])
        self._header = self._recipient = None
        self._channel = ""
        self._body.clear()

    def _call(self, recipient: str, body: str) -> Call | None:
        name = recipient.removeprefix("functions.")
        if not self._tools or (name == recipient and name not in self._tools):
            return None
        return call(name, body.strip())

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _given_out(self) -> list[Piece]:
        pieces, self._out = self._out, []
        return coalesced(pieces)
