"""Responses requests, brought into the form of a chat: that is how providers get to read them.

Source: the network's rewriting of Responses requests. Conversations that a server keeps are not
served: nothing is stored here, so a request that leans on one is refused and not half understood.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from darkbloom_provider.protocol.requests.document import (
    InvalidRequestError,
    max_tokens_of,
    refused,
)

_REWRITTEN: Final = {"input", "endpoint", "max_output_tokens", "text", "tools", "tool_choice"}
_KEPT_BY_A_SERVER: Final = ("previous_response_id", "conversation", "prompt", "background")
_LEFT_OUT: Final = {
    "input_image": "[input_image omitted]",
    "input_file": "[input_file omitted]",
}
_LOGPROBS: Final = "message.output_text.logprobs"


def responses_as_chat(document: Mapping[str, Any]) -> dict[str, Any]:
    """A chat request that asks the same; what means the same in both is copied.

    Raises:
        InvalidRequestError: With the parameter's name.
    """
    for name in _KEPT_BY_A_SERVER:
        if document.get(name):
            raise refused(name, "is not served: nothing is stored here, send the whole input")
    if document.get("n") not in (None, 1):
        raise refused("n", "must be 1 for a response")
    chat = {name: value for name, value in document.items() if name not in _REWRITTEN}
    chat["messages"] = _messages(document.get("input"))
    limit = max_tokens_of(document)
    if limit is not None:
        chat["max_tokens"] = limit
    if document.get("tools") is not None:
        chat["tools"] = _tools(document["tools"])
    if document.get("tool_choice") is not None:
        chat["tool_choice"] = _tool_choice(document["tool_choice"])
    if (form := _form(document.get("text"))) is not None:
        chat["response_format"] = form
    if document.get("top_logprobs") or _LOGPROBS in _words(document.get("include")):
        chat["logprobs"] = True
    return chat


def _messages(given: object) -> list[dict[str, Any]]:
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise refused("input", "must be text or a non-empty list")
    messages = [message for index, item in enumerate(given) for message in _message(item, index)]
    if not messages:
        raise refused("input", "holds nothing to answer")
    return messages


def _message(item: object, index: int) -> list[dict[str, Any]]:
    where = f"input[{index}]"
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    match fields:
        case {"type": "function_call", "name": str(name)}:
            function = {"name": name, "arguments": fields.get("arguments") or "{}"}
            call = {"id": _call_id(fields), "type": "function", "function": function}
            return [{"role": "assistant", "content": "", "tool_calls": [call]}]
        case {"type": "function_call_output"}:
            text = _text(fields.get("output"), where)
            return [{"role": "tool", "tool_call_id": _call_id(fields), "content": text}]
        case {"type": "reasoning"}:
            return []
        case {"type": "message"} | {"role": str()} if fields.get("type") in (None, "message"):
            role = fields.get("role") or "user"
            role = "system" if role == "developer" else role
            return [{"role": role, "content": _text(fields.get("content"), where)}]
        case _:
            message = f"{where} is neither a message nor a function's call or output"
            raise InvalidRequestError(message, param="input")


def _call_id(item: Mapping[str, Any]) -> object:
    return item.get("call_id") or item.get("id") or ""


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    texts = [_part(part, where) for part in (content if isinstance(content, list) else [content])]
    return "\n".join(texts)


def _part(part: object, where: str) -> str:
    match part:
        case str():
            return part
        case {"text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "input_image" | "input_file" as kind}:
            return _LEFT_OUT[kind]
        case _:
            raise InvalidRequestError(f"{where} holds a part that is not text", param="input")


def _tools(given: object) -> list[object]:
    if not isinstance(given, list):
        raise refused("tools", "must be a list")
    return [_tool(tool) for tool in given]


def _tool(tool: object) -> object:
    match tool:
        case {"type": "function", "function": dict()}:
            return tool
        case {"type": "function", **function}:
            # Strictness is the schema's business here, and is always kept.
            names = ("name", "description", "parameters")
            told = {name: function[name] for name in names if name in function}
            return {"type": "function", "function": told}
        case _:
            raise refused("tools", "may hold functions only")


def _tool_choice(given: object) -> object:
    match given:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case _:
            return given


def _form(text: object) -> dict[str, Any] | None:
    if not isinstance(text, dict | None):
        raise refused("text", "must be an object")
    match (text or {}).get("format"):
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema"} as form:
            # The network puts the whole format there, its type too.
            return {"type": "json_schema", "json_schema": form}
        case _:
            raise refused("text", "holds a format that is not text, json_object or json_schema")


def _words(given: object) -> Iterable[object]:
    return given if isinstance(given, list) else ()
