"""Anthropic's messages, brought into the form of a chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from darkbloom_provider.protocol.requests import shared, tools
from darkbloom_provider.protocol.requests.conversation import (
    Message,
    invalid,
    text_of,
    tool_call,
    with_instructions,
    with_names,
)
from darkbloom_provider.protocol.requests.document import InvalidRequestError, Reader, refused
from darkbloom_provider.protocol.requests.request import ResponseFormat, TextRequest


def anthropic(document: Mapping[str, Any]) -> TextRequest:
    """A messages request from its JSON object.

    Raises:
        InvalidRequestError: With the parameter's name.
    """
    read = Reader(document)
    base = shared.base_request(read, document, "messages")
    offered = tools.anthropic_tools(read)
    choice, parallel = tools.anthropic_choice(read, offered)
    try:
        system = text_of(read.get("system"), "system")
    except InvalidRequestError:
        raise refused("system", "must be text or a list of texts") from None
    return replace(
        base,
        messages=with_instructions(_messages(read.get("messages")), system),
        include_usage=True,
        stop=read.stops("stop_sequences"),
        tools=() if choice.mode == "none" else offered,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=_output_format(read),
        # In this dialect a model thinks only if it is asked to.
        template_options={"enable_thinking": _thinking(read)} | shared.template_options(read),
        ignored=read.ignored(),
    )


def _thinking(read: Reader) -> bool:
    match read.object("thinking"):
        case None | {"type": "disabled"}:
            return False
        case {"type": "enabled" | "adaptive"}:
            return True
        case _:
            raise refused("thinking", "must be of type enabled, adaptive or disabled")


def _output_format(read: Reader) -> ResponseFormat | None:
    config = read.object("output_config") or {}
    value = config.get("format")
    if value is None:
        value = read.object("output_format")
    if value is None:
        return None
    match value:
        case {"type": "json_schema", "schema": dict(schema)}:
            return ResponseFormat(schema)
        case _:
            raise refused("output_config", "holds a format that is not a json_schema")


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("messages must be a non-empty list", param="messages")
    messages: list[dict[str, object]] = []
    for index, item in enumerate(value):
        where = f"messages[{index}]"
        match item:
            case {"role": "user", "content": content}:
                messages += _from_user(content, where)
            case {"role": "assistant", "content": content}:
                messages.append(_from_assistant(content, where))
            case _:
                raise invalid(f"{where}.role", "must be user or assistant, with content")
    return with_names(messages)


def _from_user(content: object, where: str) -> list[dict[str, object]]:
    """One message for each tool's result, then one with what the user says."""
    results: list[dict[str, object]] = []
    said: list[object] = []
    for block in content if isinstance(content, list) else [content]:
        match block:
            case {"type": "tool_result", "tool_use_id": str(identifier), **rest}:
                text = text_of(rest.get("content"), f"{where}.content")
                results.append({"role": "tool", "content": text, "tool_call_id": identifier})
            case _:
                said.append(block)
    if results and not said:
        return results
    return [*results, {"role": "user", "content": text_of(said, f"{where}.content")}]


def _from_assistant(content: object, where: str) -> dict[str, object]:
    said: list[object] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in content if isinstance(content, list) else [content]:
        match block:
            case {"type": "tool_use", "input": dict(arguments), **rest}:
                text = json.dumps(arguments, ensure_ascii=False)
                calls.append(tool_call(rest.get("id"), rest.get("name"), text, where))
            case {"type": "thinking", "thinking": str(thought)}:
                thoughts.append(thought)
            case {"type": "redacted_thinking"}:
                pass
            case _:
                said.append(block)
    message: dict[str, object] = {
        "role": "assistant",
        "content": text_of(said, f"{where}.content"),
    }
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message
