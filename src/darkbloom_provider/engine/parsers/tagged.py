"""Families that mark thoughts and calls in their text: Qwen, MiniMax, Gemma, Llama, DeepSeek."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from darkbloom_provider.engine.parsers.arguments import Call, Tools
from darkbloom_provider.engine.parsers.calls import CallFormat, read_json_calls
from darkbloom_provider.engine.parsers.parser import CallId, CallNumbers
from darkbloom_provider.engine.parsers.scan import (
    LAYOUT,
    EndFinder,
    Section,
    beginning,
    pattern_of,
)
from darkbloom_provider.protocol.output import ContentDelta, Piece, ReasoningDelta, coalesced


@dataclass(frozen=True, slots=True)
class Thinking:
    """The markers around thoughts."""

    opens: str
    closes: str

    @property
    def token(self) -> str:
        """The part of the opening marker that is one token in the family's vocabularies."""
        return self.opens.removesuffix("thought")


THINK = Thinking("<think>", "</think>")
GEMMA_THOUGHT = Thinking("<|channel>thought", "<channel|>")


class _Mode(Enum):
    START = auto()
    CONTENT = auto()
    REASONING = auto()
    CALL = auto()


_CALL_KEYS = ("name", "parameters", "arguments", "function", "type")
_FIRST_KEY = re.compile(r'\{\s*"([^"\\]*)"')
_NO_KEY_YET = re.compile(r'\{\s*(?:"[^"\\]*)?')


class TaggedParser:
    """Reads one answer.

    Thoughts open only before anything else was said: an answer may speak about `<think>`.

    Args:
        thinking: The markers of thoughts, if the family has any.
        calls: The format of tool calls, if the family has one.
        tools: What the request offers. Empty: nothing is read as a call.
        call_id: Names a call by its index.
        thinking_open: Whether the prompt ended within thoughts.
        bare: Whether an answer that is a JSON object, without markers, may be a call.
    """

    def __init__(
        self,
        *,
        thinking: Thinking | None,
        calls: CallFormat | None,
        tools: Tools,
        call_id: CallId,
        thinking_open: bool = False,
        bare: bool = False,
    ) -> None:
        self._thinking = thinking
        self._format = calls if tools else None
        self._tools = tools
        self._numbers = CallNumbers(call_id)
        self._content = Section()
        self._thought = Section(bordered=True)
        self._bare = bare and bool(tools)
        markers = [marker.opens for marker in (thinking, self._format) if marker is not None]
        self._markers = markers
        self._pattern = pattern_of(markers) if markers else None
        self._end: EndFinder | None = None
        self._buffer = ""
        self._out: list[Piece] = []
        self._mode = _Mode.REASONING if thinking_open and thinking is not None else self._start()

    def feed(self, text: str) -> list[Piece]:
        """What is certain after `text` has come."""
        self._buffer += text
        return self._advance()

    def finish(self) -> list[Piece]:
        """The rest. A call whose closing marker never came counts if it is whole without it."""
        pieces = self._advance()
        while self._buffer:
            if self._mode is _Mode.CALL:
                self._finish_call()
            elif self._mode is _Mode.START:
                self._finish_start()
            else:
                # The start of a marker that never came.
                rest, self._buffer = self._buffer, ""
                self._say(rest)
            pieces += self._advance()
        if self._mode is _Mode.REASONING:
            pieces.append(ReasoningDelta(self._thought.end()))
        pieces.append(ContentDelta(self._content.end()))
        return coalesced(pieces)

    # ------------------------------------------------------------ steps

    def _advance(self) -> list[Piece]:
        while self._buffer and self._step():
            pass
        pieces, self._out = self._out, []
        return coalesced(pieces)

    def _step(self) -> bool:
        """Take one decision; False if it needs more text."""
        match self._mode:
            case _Mode.START:
                return self._step_start()
            case _Mode.CONTENT:
                return self._step_content()
            case _Mode.REASONING:
                return self._step_reasoning()
            case _Mode.CALL:
                return self._step_call()

    def _step_content(self) -> bool:
        if self._pattern is None:
            self._say(self._take(len(self._buffer)))
            return False
        match = self._pattern.search(self._buffer)
        if match is None:
            self._say(self._take(len(self._buffer) - beginning(self._buffer, self._markers)))
            return False
        marker = match.group()
        self._say(self._take(match.start()))
        if self._thinking is not None and marker == self._thinking.opens:
            self._take(len(marker))
            if self._content.started:
                self._say(marker)
            else:
                self._content.border()
                self._mode = _Mode.REASONING
        else:
            self._open_call()
        return True

    def _step_reasoning(self) -> bool:
        closes = self._thinking.closes if self._thinking is not None else ""
        at = self._buffer.find(closes)
        if at < 0:
            self._say(self._take(len(self._buffer) - beginning(self._buffer, [closes])))
            return False
        self._say(self._take(at))
        self._take(len(closes))
        self._thought.border()
        self._content.border()
        self._mode = self._start()
        return True

    def _step_call(self) -> bool:
        # The opening marker stays in the buffer: if this is no call, it is content.
        if self._format is None or self._format.closes is None or self._end is None:
            return False
        at = self._end.find(self._buffer)
        if at is None:
            return False
        body = self._buffer[len(self._format.opens) : at]
        whole = self._take(at + len(self._format.closes))
        self._conclude(whole, self._format.read(body, self._tools))
        return True

    # ------------------------------------------------------------ calls without markers

    def _start(self) -> _Mode:
        return _Mode.START if self._bare else _Mode.CONTENT

    def _step_start(self) -> bool:
        text = self._buffer.lstrip(LAYOUT)
        if not text:
            return False
        if text.startswith("{"):
            key = _FIRST_KEY.match(text)
            undecided = key is None and _NO_KEY_YET.fullmatch(text) is not None
            if undecided or (key is not None and key[1] in _CALL_KEYS):
                # Whether it is a call shows at the end: Llama says nothing after one.
                return False
        self._mode = _Mode.CONTENT
        return True

    def _finish_start(self) -> None:
        calls = read_json_calls(self._buffer, self._tools)
        self._mode = _Mode.CONTENT
        if calls is not None and all(call.name in self._tools for call in calls):
            self._conclude(self._take(len(self._buffer)), calls)

    # ------------------------------------------------------------ the ends of calls

    def _open_call(self) -> None:
        self._mode = _Mode.CALL
        if self._format is not None and self._format.closes is not None:
            self._end = EndFinder(self._format.closes, self._format.quotes, len(self._format.opens))

    def _finish_call(self) -> None:
        assert self._format is not None  # noqa: S101 — there are no calls without a format
        calls = self._format.read(self._buffer[len(self._format.opens) :], self._tools)
        if calls is not None:
            self._conclude(self._take(len(self._buffer)), calls)
            return
        # A quote in it was never closed, or it was cut short. Whatever stands before its closing
        # marker is content; what follows may be read again, and this time quotes count nothing.
        closes = self._format.closes
        opened = len(self._format.opens)
        at = self._buffer.find(closes, opened) if closes is not None else -1
        length = len(self._buffer) if at < 0 or closes is None else at + len(closes)
        self._conclude(self._take(length), None)

    def _conclude(self, whole: str, calls: list[Call] | None) -> None:
        self._end = None
        self._mode = _Mode.CONTENT
        if calls is None:
            self._say(whole)
        else:
            self._content.border()
            self._out += self._numbers.pieces(calls)

    # ------------------------------------------------------------ text

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _say(self, text: str) -> None:
        if self._mode is _Mode.REASONING:
            if shown := self._thought.add(text):
                self._out.append(ReasoningDelta(shown))
        elif shown := self._content.add(text):
            self._out.append(ContentDelta(shown))
