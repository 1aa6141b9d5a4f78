"""The formats of tool calls: their markers, how text is quoted within, and how a body is read.

Every reader takes the text between the markers and gives the calls in it, or None if it is
malformed. Sources: the chat templates of the families, and the parsers mlx-lm ships for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from darkbloom_provider.engine.parsers.arguments import Call, Tools, call, read_json
from darkbloom_provider.engine.parsers.literals import LiteralError, LiteralReader
from darkbloom_provider.engine.parsers.scan import Quote

Read = Callable[[str, Tools], list[Call] | None]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a family writes tool calls into its text."""

    opens: str
    closes: str | None
    """None if calls end with the answer."""
    read: Read
    quotes: tuple[Quote, ...] = ()


# ---------------------------------------------------------------- JSON


def read_json_calls(body: str, _tools: Tools) -> list[Call] | None:
    """`{"name": …, "arguments": {…}}`, a list of them, or several with `;` between."""
    value = read_json(body)
    if value is None:
        parts = [read_json(part) for part in _objects(body)]
        value = parts if parts and None not in parts else None
    items = value if isinstance(value, list) else [value]
    calls = [_json_call(item) for item in items]
    whole = [found for found in calls if found is not None]
    return whole if whole and len(whole) == len(calls) else None


def _json_call(item: object) -> Call | None:
    if not isinstance(item, dict):
        return None
    function = item.get("function")
    if isinstance(function, dict):
        item = function
    arguments = item.get("arguments", item.get("parameters"))
    return call(item.get("name") or function, arguments)


def _objects(body: str) -> list[str]:
    # Llama separates several calls with semicolons, which may also stand in their texts.
    return re.split(r"(?<=\})\s*;\s*(?=\{)", body.strip().rstrip(";"))


# ---------------------------------------------------------------- tags


@dataclass(frozen=True, slots=True)
class _Tags:
    function: re.Pattern[str]
    parameter: re.Pattern[str]
    ends: re.Pattern[str]

    def read(self, body: str, tools: Tools, trim: Callable[[str], str]) -> list[Call] | None:
        """Functions one after another, each with its parameters; nothing else."""
        calls: list[Call] = []
        at = 0
        while (function := self.function.match(body, at)) is not None:
            name = _name(function)
            at = function.end()
            arguments: dict[str, object] = {}
            while (parameter := self.parameter.match(body, at)) is not None:
                at = parameter.end()
                key = _name(parameter)
                arguments[key] = tools.typed(name, key, trim(parameter["value"]))
            end = self.ends.match(body, at)
            found = call(name, arguments)
            if end is None or found is None:
                return None
            at = end.end()
            calls.append(found)
        return calls if calls and not body[at:].strip() else None


def _name(match: re.Match[str]) -> str:
    return next(group for group in match.group("a", "b", "c") if group is not None).strip()


_NAME = r"""\s*(?:"(?P<a>[^"<>]+)"|'(?P<b>[^'<>]+)'|(?P<c>[^"'<>\s][^<>\n]*))\s*>"""
_CODER = _Tags(
    function=re.compile(rf"\s*<function={_NAME}"),
    # A value ends where its closing tag is followed by what may follow it, so that it may hold one.
    parameter=re.compile(
        rf"\s*<parameter={_NAME}(?P<value>.*?)</parameter>(?=\s*(?:<parameter=|</function>))",
        re.DOTALL,
    ),
    ends=re.compile(r"\s*</function>"),
)
_INVOKE = _Tags(
    function=re.compile(rf"\s*<invoke name={_NAME}"),
    parameter=re.compile(
        rf"\s*<parameter name={_NAME}(?P<value>.*?)</parameter>"
        r"(?=\s*(?:<parameter name=|</invoke>))",
        re.DOTALL,
    ),
    ends=re.compile(r"\s*</invoke>"),
)


def _without_breaks(value: str) -> str:
    return value.removeprefix("\n").removesuffix("\n")


def _read_qwen(body: str, tools: Tools) -> list[Call] | None:
    if body.lstrip().startswith("<"):
        return _CODER.read(body, tools, _without_breaks)
    return read_json_calls(body, tools)


def _read_minimax(body: str, tools: Tools) -> list[Call] | None:
    return _INVOKE.read(body, tools, str.strip)


# ---------------------------------------------------------------- literals


_GEMMA_TEXT = '<|"|>'
_ESCAPE = "<escape>"


def _read_gemma(body: str, _tools: Tools) -> list[Call] | None:
    reader = LiteralReader(body, raw=(_GEMMA_TEXT, _ESCAPE), bare=True)
    calls: list[Call] = []
    try:
        while reader.take("call:"):
            found = call(reader.name(), reader.members())
            if found is None:
                return None
            calls.append(found)
            reader.take(",")
        reader.expect_end()
    except LiteralError:
        return None
    return calls or None


def _read_python(body: str, _tools: Tools) -> list[Call] | None:
    try:
        calls = [call(name, arguments) for name, arguments in LiteralReader(body).calls()]
    except LiteralError:
        return None
    whole = [found for found in calls if found is not None]
    return whole if whole and len(whole) == len(calls) else None


def _read_tool_code(body: str, tools: Tools) -> list[Call] | None:
    # Any Python may stand here; only calls of what was offered are tool calls.
    calls = [
        Call(_offered(found.name, tools), found.arguments)
        for found in _read_python(body, tools) or ()
    ]
    return calls if calls and all(found.name in tools for found in calls) else None


def _offered(name: str, tools: Tools) -> str:
    last = name.rpartition(".")[2]
    return last if name not in tools and last in tools else name


# ---------------------------------------------------------------- the formats


_JSON_TEXT = Quote('"', '"', escapes=True)
_PYTHON_TEXT = (_JSON_TEXT, Quote("'", "'", escapes=True))

QWEN = CallFormat(
    "<tool_call>",
    "</tool_call>",
    _read_qwen,
    (_JSON_TEXT, Quote("<parameter=", "</parameter>")),
)
"""Hermes's JSON and Qwen's tags. Both stand between the same markers, so both are read."""
MINIMAX = CallFormat(
    "<minimax:tool_call>",
    "</minimax:tool_call>",
    _read_minimax,
    (Quote("<parameter name=", "</parameter>"),),
)
LLAMA = CallFormat("<|python_tag|>", None, read_json_calls)
GEMMA4 = CallFormat("<|tool_call>", "<tool_call|>", _read_gemma, (Quote(_GEMMA_TEXT, _GEMMA_TEXT),))
FUNCTION_GEMMA = CallFormat(
    "<start_function_call>", "<end_function_call>", _read_gemma, (Quote(_ESCAPE, _ESCAPE),)
)
TOOL_CODE = CallFormat("```tool_code", "```", _read_tool_code, _PYTHON_TEXT)
PYTHONIC = CallFormat("<|tool_call_start|>", "<|tool_call_end|>", _read_python, _PYTHON_TEXT)
