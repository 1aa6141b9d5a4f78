"""Tool calls as values: their arguments typed by the tool's schema and written as JSON.

Formats that write arguments as bare text leave their types to the schema. The rules are those of
the parsers that Qwen and MiniMax publish for their models, but for text that does not fit its
schema: it stays text, so that the consumer can tell the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from darkbloom_provider.engine.parsers.literals import LiteralError, read_literal

Schema = Mapping[str, Any]
_MAX_DEPTH = 32
"""Alternatives within alternatives that are looked into."""

_TEXT = {"string"}
_INTEGER = {"integer", "int"}
_NUMBER = {"number", "float", "double"}
_BOOLEAN = {"boolean", "bool"}
_CONTAINER = {"object", "array", "dict", "list"}
_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


@dataclass(frozen=True, slots=True)
class Call:
    """One whole tool call. `arguments` is a JSON object's text."""

    name: str = field(repr=False)
    arguments: str = field(repr=False)


class Tools:
    """The tools a request offers, in OpenAI's form: `{"type", "function": {"name", …}}`."""

    __slots__ = ("_parameters",)

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        functions = [_mapping(_mapping(tool).get("function")) for tool in tools]
        self._parameters = {
            str(function["name"]): _mapping(_mapping(function.get("parameters")).get("properties"))
            for function in functions
            if function.get("name")
        }

    def __bool__(self) -> bool:
        return bool(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def typed(self, function: str, parameter: str, text: str) -> object:
        """The value that `text` stands for as this parameter."""
        return typed(text, self._parameters.get(function, {}).get(parameter))


def call(name: object, arguments: object) -> Call | None:
    """A call, or None if these are no name and no arguments of one."""
    if arguments is None or arguments == "":
        arguments = {}
    elif isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        return None
    written = _written(arguments)
    return None if written is None or not _sendable(name) else Call(name.strip(), written)


def read_json(text: str) -> object:
    """The value of JSON text, line breaks within strings allowed; None if it is not JSON."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def typed(text: str, schema: object) -> object:
    """The value that bare `text` stands for under a JSON schema."""
    lowered = text.strip().lower()
    if lowered == "null":
        return None
    types = set(_types(schema, _MAX_DEPTH)) if isinstance(schema, Mapping) else _TEXT
    if not types:
        value = read_json(text)
        return value if isinstance(value, dict | list) else text
    if "null" in types and lowered in {"none", "nil"}:
        return None
    value = _integer(lowered) if types & _INTEGER else None
    if value is None and types & _NUMBER:
        value = _number(lowered)
    if value is None and types & _BOOLEAN and lowered in _TRUE | _FALSE:
        value = lowered in _TRUE
    if value is None and types & _CONTAINER:
        value = _container(text)
    return text if value is None else value


def _types(schema: Mapping[str, Any], depth: int) -> Iterator[str]:
    declared = schema.get("type")
    for name in declared if isinstance(declared, list) else [declared]:
        if isinstance(name, str):
            yield name.strip().lower()
    values = schema.get("enum")
    constant = [schema["const"]] if "const" in schema else []
    for value in [*(values if isinstance(values, list) else []), *constant]:
        yield _type_of(value)
    if depth:
        for keyword in ("anyOf", "oneOf", "allOf"):
            choices = schema.get(keyword)
            for choice in choices if isinstance(choices, list) else []:
                if isinstance(choice, Mapping):
                    yield from _types(choice, depth - 1)


def _type_of(value: object) -> str:  # noqa: PLR0911 — one line for each of JSON's types
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case dict():
            return "object"
        case list():
            return "array"
        case _:
            return "string"


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        number = _number(text)
        return number if isinstance(number, int) else None


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _container(text: str) -> object:
    value = read_json(text)
    if value is None:
        try:
            value = read_literal(text)
        except LiteralError:
            return None
    return value if isinstance(value, dict | list) else None


def _written(arguments: dict[str, Any]) -> str | None:
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        # Half of a surrogate pair cannot be sent as it is; escaped, it can.
        return text if _sendable(text) else json.dumps(arguments, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return None


def _sendable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
