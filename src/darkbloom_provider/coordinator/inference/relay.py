"""What a provider's answer becomes on its way to the consumer. Pure: text in, text out.

Source: the network's fix-ups for chat replies. A provider's own `[DONE]` is not relayed: only the
coordinator knows whether the request really ended well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from darkbloom_provider.protocol.messages import InferenceComplete
from darkbloom_provider.protocol.openai import error_body, usage

PREFIX: Final = "data: "
DONE: Final = b"data: [DONE]\n\n"

_NEEDS_REPAIR: Final = (
    '"content":null',
    '"tool_calls":null',
    '"usage":null',
    '"reasoning":null',
    '"reasoning_content"',
    '"refusal":null',
    '"system_fingerprint":null',
)
_THINK: Final = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.IGNORECASE | re.DOTALL)


def stream_event(chunk: str) -> bytes | None:
    """The bytes a streaming consumer gets for one decrypted chunk, or None for nothing."""
    text = chunk.rstrip("\r\n")
    if not text or _payload(text) == "[DONE]":
        return None
    if any(literal in text for literal in _NEEDS_REPAIR):
        document = object_of(text)
        if document is not None:
            text = _line(_repaired_event(document))
    if not text.startswith(("data:", "event:", "id:", ":")):
        text = PREFIX + text
    return event_bytes(text)


def error_event(kind: str, message: str) -> bytes:
    """The event that ends a stream which failed. No `[DONE]` follows it."""
    return event_bytes(_line(error_body(kind, message)))


def receipt_event(completion: InferenceComplete) -> bytes | None:
    """The provider's signature over its answer, if it made one."""
    if not completion.se_signature:
        return None
    return event_bytes(_line({"choices": [], **receipt(completion)}))


def reply(
    chunks: Sequence[str], *, model: str, job_id: str, created: int, completion: InferenceComplete
) -> dict[str, Any]:
    """The one object a non-streaming consumer gets.

    A single whole `chat.completion` passes through with fix-ups; anything else is rebuilt from the
    pieces, with the usage that was billed.
    """
    if len(chunks) == 1:
        document = object_of(chunks[0])
        if document is not None and document.get("object") == "chat.completion":
            return _repaired_completion(document, model) | receipt(completion)
    rebuilt = _Rebuilt()
    for chunk in chunks:
        document = object_of(chunk)
        if document is not None:
            rebuilt.add(document)
    return {
        "id": f"chatcmpl-{job_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [rebuilt.choice()],
        "usage": usage(completion.usage.prompt_tokens, completion.usage.completion_tokens),
    } | receipt(completion)


def receipt(completion: InferenceComplete) -> dict[str, str]:
    """The fields of the provider's signature over its answer; none without a signature."""
    if not completion.se_signature:
        return {}
    receipt = {"se_signature": completion.se_signature}
    if completion.response_hash:
        receipt["response_hash"] = completion.response_hash
    return receipt


def _payload(text: str) -> str:
    return text.removeprefix("data:").strip()


def object_of(chunk: str) -> dict[str, Any] | None:
    """The JSON object of a chunk, with or without its prefix; None if there is none."""
    try:
        document = json.loads(_payload(chunk))
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _line(document: object) -> str:
    return PREFIX + json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def event_bytes(text: str) -> bytes:
    """A whole event of these lines."""
    # Half of a surrogate pair is valid JSON, but cannot be sent as UTF-8.
    return text.encode("utf-8", "replace") + b"\n\n"


def _parts(document: dict[str, Any], part: str) -> list[dict[str, Any]]:
    choices = document.get("choices")
    found = (
        [c.get(part) for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    )
    return [item for item in found if isinstance(item, dict)]


def _repaired_event(document: dict[str, Any]) -> dict[str, Any]:
    for name in ("usage", "system_fingerprint"):
        if name in document and document[name] is None:
            del document[name]
    for delta in _parts(document, "delta"):
        if "reasoning_content" in delta:
            thought = delta.pop("reasoning_content")
            delta.setdefault("reasoning", thought)
        for name in ("content", "reasoning", "refusal"):
            if name in delta and delta[name] is None:
                delta[name] = ""
        if "tool_calls" in delta and delta["tool_calls"] is None:
            delta["tool_calls"] = []
    return document


def _repaired_completion(document: dict[str, Any], model: str) -> dict[str, Any]:
    document["model"] = model
    if document.get("system_fingerprint", "") is None:
        del document["system_fingerprint"]
    for message in _parts(document, "message"):
        content = message.get("content")
        content, thought = _without_thoughts(content) if isinstance(content, str) else (content, "")
        message["content"] = "" if content is None else content
        said = [message.pop("reasoning_content", None), message.pop("reasoning", None), thought]
        reasoning = "\n".join(
            text for text in dict.fromkeys(said) if isinstance(text, str) and text
        )
        if reasoning:
            message["reasoning"] = reasoning
        for name in ("tool_calls", "refusal"):
            if name in message and message[name] is None:
                del message[name]
    return document


def _without_thoughts(content: str) -> tuple[str, str]:
    if "<think>" not in content.lower():
        return content, ""
    thoughts = [thought.strip() for thought in _THINK.findall(content)]
    return _THINK.sub("", content).strip(), "\n".join(filter(None, thoughts))


@dataclass(slots=True)
class _Rebuilt:
    """A message put together from the pieces of a stream."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, document: dict[str, Any]) -> None:
        for piece in (*_parts(document, "delta"), *_parts(document, "message")):
            _append(self.content, piece.get("content"))
            _append(self.reasoning, piece.get("reasoning") or piece.get("reasoning_content"))
            calls = piece.get("tool_calls")
            for call in calls if isinstance(calls, list) else []:
                if isinstance(call, dict):
                    self._add_call(call)
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and isinstance(choice.get("finish_reason"), str):
                self.finish_reason = choice["finish_reason"]

    def _add_call(self, fragment: dict[str, Any]) -> None:
        index = fragment.get("index", len(self.calls))
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        if index == len(self.calls):
            name = str(function.get("name") or "")
            self.calls.append(
                {
                    "id": str(fragment.get("id") or ""),
                    "type": "function",
                    "function": {"name": name, "arguments": str(function.get("arguments") or "")},
                }
            )
        elif isinstance(index, int) and 0 <= index < len(self.calls):
            self.calls[index]["function"]["arguments"] += str(function.get("arguments") or "")

    def choice(self) -> dict[str, Any]:
        content, thought = _without_thoughts("".join(self.content))
        message: dict[str, Any] = {"role": "assistant", "content": content}
        reasoning = "".join(self.reasoning) + thought
        if reasoning:
            message["reasoning"] = reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        finish = "tool_calls" if self.calls else self.finish_reason or "stop"
        return {"index": 0, "message": message, "finish_reason": finish}


def _append(texts: list[str], value: object) -> None:
    if isinstance(value, str):
        texts.append(value)
