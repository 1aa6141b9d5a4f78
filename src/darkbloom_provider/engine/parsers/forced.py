"""Answers that must be a tool call: the schema they are held to, and their reader.

A model that is told to call a tool is not asked in its own format but held to JSON, token by token;
so any model can be made to call, and what comes is valid by construction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from darkbloom_provider.engine.parsers.arguments import Call
from darkbloom_provider.engine.parsers.parser import CallId, CallNumbers, Parser, PlainParser
from darkbloom_provider.protocol.output import ContentDelta, Piece

Schema = Mapping[str, Any]


def only_tool(tools: Sequence[Mapping[str, Any]], name: str | None) -> Mapping[str, Any] | None:
    """The function that has to be called, if there is no choice left to the model."""
    functions: list[Mapping[str, Any]] = [tool["function"] for tool in tools]
    named = [function for function in functions if name is None or function["name"] == name]
    return named[0] if len(named) == 1 else None


def forced_schema(tools: Sequence[Mapping[str, Any]], name: str | None) -> Schema:
    """What the text must be: one tool's arguments, or the name and the arguments of one of several.

    Args:
        tools: What the request offers, in OpenAI's form. Not empty.
        name: The tool that must be called; None for any of them.
    """
    only = only_tool(tools, name)
    if only is not None:
        return {"type": "object", **only["parameters"]}
    return {"anyOf": [_named(index, tool["function"]) for index, tool in enumerate(tools)]}


class ForcedCallParser:
    """Reads one answer that was held to `forced_schema`.

    It waits for the end: a call that the limit of tokens cut is told as text, not as half a call.

    Args:
        tools: What the request offers, in OpenAI's form.
        name: The tool that must be called; None for any of them.
        call_id: Names the call.
        inner: Tells thoughts from the text that is held to the schema; None if there are none.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]],
        name: str | None,
        call_id: CallId,
        inner: Parser | None = None,
    ) -> None:
        self._only = only_tool(tools, name)
        self._numbers = CallNumbers(call_id)
        self._inner = PlainParser() if inner is None else inner
        self._text: list[str] = []

    def feed(self, text: str) -> list[Piece]:
        """The thoughts; nothing yet of the call."""
        return self._thoughts(self._inner.feed(text))

    def finish(self) -> list[Piece]:
        """The call."""
        return self._thoughts(self._inner.finish()) + self._whole("".join(self._text))

    def _thoughts(self, pieces: list[Piece]) -> list[Piece]:
        self._text += [piece.text for piece in pieces if isinstance(piece, ContentDelta)]
        return [piece for piece in pieces if not isinstance(piece, ContentDelta)]

    def _whole(self, text: str) -> list[Piece]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return [ContentDelta(text)] if text else []
        call = self._call(document)
        return [ContentDelta(text)] if call is None else self._numbers.pieces([call])

    def _call(self, document: object) -> Call | None:
        match document:
            case dict() if self._only is not None:
                return Call(self._only["name"], json.dumps(document, ensure_ascii=False))
            case {"name": str(name), "arguments": dict(arguments)}:
                return Call(name, json.dumps(arguments, ensure_ascii=False))
            case _:
                return None


def _named(index: int, function: Mapping[str, Any]) -> dict[str, Any]:
    # References within a schema count from its root, which is further away now.
    root = f"#/anyOf/{index}/properties/arguments"
    arguments = {"type": "object"} | _moved(function["parameters"], root)
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:  # noqa: ANN401 — any JSON
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"{root}{value[1:]}"
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, root)
        for key, value in schema.items()
    }
