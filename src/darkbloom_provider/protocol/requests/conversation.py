"""The messages of a conversation, in the one form that chat templates get."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from darkbloom_provider.protocol.requests.document import InvalidRequestError

Message = Mapping[str, object]

_ROLES: Final = {"system", "developer", "user", "assistant", "tool", "function"}


def invalid(where: str, message: str) -> InvalidRequestError:
    """The error for one message."""
    return InvalidRequestError(f"{where} {message}", param="messages")


def openai_messages(value: object) -> tuple[Message, ...]:
    """`messages` of a chat request."""
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("messages must be a non-empty list", param="messages")
    return with_names(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def with_instructions(messages: tuple[Message, ...], instructions: str) -> tuple[Message, ...]:
    """The conversation, led by instructions.

    There is one system message then: many templates refuse a second.
    """
    if not instructions:
        return messages
    first = messages[0] if messages else None
    if first is None or first["role"] != "system":
        return ({"role": "system", "content": instructions}, *messages)
    return ({**first, "content": f"{instructions}\n\n{first['content']}"}, *messages[1:])


def text_of(value: object, where: str) -> str:
    """Content as text: as it stands, or the texts of its parts in lines.

    Raises:
        InvalidRequestError: There is something other than text in it.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid(where, "must be text or a list")
    texts: list[str] = []
    for part in value:
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise invalid(where, "may hold text only")
        texts.append(text)
    return "\n".join(texts)


def tool_call(identifier: object, name: object, arguments: str, where: str) -> dict[str, Any]:
    """A call that the model made earlier, its arguments a JSON object's text."""
    if not isinstance(name, str) or not name:
        raise invalid(where, "holds a tool call without a name")
    try:
        known = isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise invalid(where, "holds a tool call whose arguments are not a JSON object")
    return {
        "id": identifier if isinstance(identifier, str) else "",
        "type": "function",
        "function": {"name": name, "arguments": arguments or "{}"},
    }


def _message(item: object, where: str) -> dict[str, object]:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{where}.role", "is missing or unknown")
    if role == "developer":
        role = "system"
    message: dict[str, object] = {
        "role": role,
        "content": text_of(item.get("content"), f"{where}.content"),
    }
    if role == "assistant":
        thought = item.get("reasoning_content") or item.get("reasoning")
        if isinstance(thought, str) and thought:
            message["reasoning_content"] = thought
        if calls := _calls(item.get("tool_calls"), f"{where}.tool_calls"):
            message["tool_calls"] = calls
    for name in ("tool_call_id", "name") if role in {"tool", "function"} else ():
        if isinstance(item.get(name), str):
            message[name] = item[name]
    return message


def _calls(value: object, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(where, "must be a list")
    calls: list[dict[str, Any]] = []
    for item in value:
        function = item.get("function") if isinstance(item, dict) else None
        arguments = function.get("arguments", "") if isinstance(function, dict) else None
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        if not isinstance(arguments, str) or not isinstance(function, dict):
            raise invalid(where, "may hold functions with arguments as text only")
        calls.append(tool_call(item.get("id"), function.get("name"), arguments, where))
    return calls


def with_names(messages: Iterable[dict[str, object]]) -> tuple[Message, ...]:
    """Tell each tool's answer which tool it is from: some templates ask for it."""
    names: dict[str, str] = {}
    named: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            names[call["id"]] = call["function"]["name"]
        identifier = message.get("tool_call_id")
        if isinstance(identifier, str) and "name" not in message and identifier in names:
            named.append({**message, "name": names[identifier]})
        else:
            named.append(message)
    return tuple(named)
