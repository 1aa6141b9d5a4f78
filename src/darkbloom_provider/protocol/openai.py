"""OpenAI shapes: plain chat requests, and the events of an answer.

The requests of all dialects are read in `protocol.requests`; what is named here is the part that
serves plain chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from darkbloom_provider.protocol.requests.document import (
    MAX_BODY_BYTES,
    MAX_STOPS,
    InvalidRequestError,
    max_tokens_of,
    model_of,
    parse_object,
)
from darkbloom_provider.protocol.requests.read import request_of
from darkbloom_provider.protocol.requests.request import (
    CHAT_ENDPOINT,
    CHAT_FEATURES,
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    TextRequest,
)

__all__ = [
    "CHAT_ENDPOINT",
    "DEFAULT_MAX_TOKENS",
    "DEFAULT_TEMPERATURE",
    "DEFAULT_TOP_P",
    "MAX_BODY_BYTES",
    "MAX_STOPS",
    "ChatRequest",
    "FinishReason",
    "InvalidRequestError",
    "chat_request",
    "chunk_event",
    "completion_event",
    "error_body",
    "event",
    "max_tokens_of",
    "model_of",
    "parse_chat_request",
    "parse_object",
    "usage",
    "usage_event",
]

# Made once: `json.dumps` makes an encoder for each call, and a stream has an event for every token.
_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode

FinishReason = Literal["stop", "length", "content_filter"]
"""Why a choice ended. Engines know the first two; foreign providers may filter."""
ChatRequest = TextRequest


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read and check the body of a plain chat request; what needs more is refused by name.

    Raises:
        InvalidRequestError: With the parameter's name and the HTTP status to answer.
    """
    return chat_request(parse_object(body))


def chat_request(document: Mapping[str, Any]) -> ChatRequest:
    """As `parse_chat_request`, from a JSON object."""
    return request_of(document, CHAT_FEATURES)


# ---------------------------------------------------------------- the answer


def event(document: Mapping[str, object]) -> str:
    """One server-sent event line: `data: ` and compact JSON, without the line's end."""
    return f"data: {_encode(document)}"


def chunk_event(
    *,
    id: str,  # noqa: A002 — the field's name in the format
    created: int,
    model: str,
    delta: Mapping[str, object],
    finish_reason: FinishReason | None = None,
) -> str:
    """One piece of a streamed answer. `created` is in Unix seconds."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return event(_envelope(id, "chat.completion.chunk", created, model, [choice]))


def usage_event(
    *,
    id: str,  # noqa: A002 — the field's name in the format
    created: int,
    model: str,
    prompt_tokens: int,
    completion_tokens: int,
) -> str:
    """The last event of a stream whose consumer set `stream_options.include_usage`."""
    envelope = _envelope(id, "chat.completion.chunk", created, model, [])
    return event(envelope | {"usage": usage(prompt_tokens, completion_tokens)})


def completion_event(
    *,
    id: str,  # noqa: A002 — the field's name in the format
    created: int,
    model: str,
    content: str,
    finish_reason: FinishReason,
    prompt_tokens: int,
    completion_tokens: int,
) -> str:
    """A whole answer in one event, for a request that does not stream."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    envelope = _envelope(id, "chat.completion", created, model, [choice])
    return event(envelope | {"usage": usage(prompt_tokens, completion_tokens)})


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The `usage` object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def error_body(type: str, message: str) -> dict[str, dict[str, str]]:  # noqa: A002 — the field's name
    """The body of every error: exactly these two keys."""
    return {"error": {"type": type, "message": message}}


def _envelope(
    identifier: str, kind: str, created: int, model: str, choices: list[Any]
) -> dict[str, object]:
    return {
        "id": identifier,
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
    }
