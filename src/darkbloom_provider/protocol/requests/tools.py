"""The tools a request offers and how the model is to use them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from darkbloom_provider.protocol.requests.document import Reader, refused
from darkbloom_provider.protocol.requests.request import ToolChoice

MAX_TOOLS: Final = 128
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

Tool = Mapping[str, Any]
_Parts = tuple[object, object, object]
"""Name, description and parameters, unchecked."""


def openai_tools(read: Reader) -> tuple[Tool, ...]:
    """`tools` of a chat request: `{"type": "function", "function": {…}}` each."""
    return _tools(read, _openai_function)


def anthropic_tools(read: Reader) -> tuple[Tool, ...]:
    """`tools` of a messages request, in OpenAI's form."""
    return _tools(read, _anthropic_function)


def openai_choice(read: Reader, tools: Sequence[Tool]) -> ToolChoice:
    """`tool_choice` of a chat request: a word or a named tool."""
    value = read.get("tool_choice")
    match value:
        case None:
            return ToolChoice()
        case "auto" | "none" | "required":
            return _checked(ToolChoice(value), tools)
        case {"type": "function", "function": {"name": str(name)}} | {
            "type": "function",
            "name": str(name),
        }:
            return _checked(ToolChoice("required", name), tools)
        case _:
            raise refused("tool_choice", "must be none, auto, required or a function's name")


def anthropic_choice(read: Reader, tools: Sequence[Tool]) -> tuple[ToolChoice, bool]:
    """`tool_choice` of a messages request, and whether several calls at once are welcome."""
    value = read.object("tool_choice") or {"type": "auto"}
    match value:
        case {"type": "auto" | "none" as mode}:
            choice = ToolChoice(mode)
        case {"type": "any"}:
            choice = ToolChoice("required")
        case {"type": "tool", "name": str(name)}:
            choice = ToolChoice("required", name)
        case _:
            raise refused("tool_choice", "must be of type auto, any, tool or none")
    return _checked(choice, tools), value.get("disable_parallel_tool_use") is not True


def _tools(read: Reader, function_of: Callable[[object], _Parts]) -> tuple[Tool, ...]:
    value = read.get("tools")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise refused("tools", f"must be a list of at most {MAX_TOOLS}")
    functions = [_function(*function_of(item)) for item in value]
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        raise refused("tools", "holds two of one name")
    return tuple({"type": "function", "function": function} for function in functions)


def _openai_function(item: object) -> _Parts:
    match item:
        case {"type": "function", "function": dict(function)}:
            return function.get("name"), function.get("description"), function.get("parameters")
        case _:
            raise refused("tools", "may hold functions only")


def _anthropic_function(item: object) -> _Parts:
    match item:
        case {"input_schema": dict(schema), **rest} if rest.get("type") in {None, "custom"}:
            return rest.get("name"), rest.get("description"), schema
        case _:
            raise refused("tools", "may hold tools with an input_schema only")


def _function(name: object, description: object, parameters: object) -> dict[str, Any]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refused("tools", "holds a function without a plain name")
    if not isinstance(description, str | None):
        raise refused("tools", "holds a description that is not text")
    if not isinstance(parameters, dict | None):
        raise refused("tools", "holds parameters that are not a schema")
    return {
        "name": name,
        "description": description or "",
        "parameters": parameters or {"type": "object", "properties": {}},
    }


def _checked(choice: ToolChoice, tools: Sequence[Tool]) -> ToolChoice:
    if choice.mode == "required":
        names = {tool["function"]["name"] for tool in tools}
        if not names or (choice.name is not None and choice.name not in names):
            raise refused("tool_choice", "asks for a tool that is not offered")
    return choice
