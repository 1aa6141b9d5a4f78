"""OpenAI shapes: a chat request read from foreign JSON, and the events of an answer.

Requests are read leniently where the network rewrites them (key order, `8192.0` for `8192`) and
strictly where a mistake would be served wrong: what is not served is refused by name, never
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal, NoReturn

from darkbloom_provider.errors import DarkbloomError

DEFAULT_MAX_TOKENS: Final = 8192
DEFAULT_TEMPERATURE: Final = 0.7
DEFAULT_TOP_P: Final = 0.9
"""Sampling defaults of this network, so that a prompt answers alike on every provider."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_STOPS: Final = 16

CHAT_ENDPOINT: Final = "/v1/chat/completions"

FinishReason = Literal["stop", "length"]

_ROLES: Final = {"system", "developer", "user", "assistant", "tool", "function"}
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    # Not served yet: any value that would change the answer is refused.
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}


class InvalidRequestError(DarkbloomError):
    """The consumer's request makes no sense. The message is safe to show: it quotes no content."""

    def __init__(
        self, message: str, *, param: str | None = None, status_code: int = HTTPStatus.BAD_REQUEST
    ) -> None:
        super().__init__(message)
        self.param = param
        """The parameter at fault, if one is."""
        self.status_code = int(status_code)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat request, checked. Its content never shows in a representation."""

    model: str
    messages: tuple[Mapping[str, object], ...] = field(repr=False)
    stream: bool = False
    include_usage: bool = False
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = 0
    """0 means no limit."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)


def parse_object(body: bytes) -> dict[str, Any]:
    """A request body as a JSON object.

    Raises:
        InvalidRequestError: Too large (413), not JSON, or not an object (400).
    """
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequestError(
            f"the request body is larger than {MAX_BODY_BYTES} bytes",
            status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    try:
        text = body.decode()
        document = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            # Half of a surrogate pair is valid JSON, but no text that can be encoded again.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRequestError("the request body is not valid JSON") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("the request body must be a JSON object")
    return document


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read and check the body of a chat request.

    Raises:
        InvalidRequestError: With the parameter's name and the HTTP status to answer.
    """
    return chat_request(parse_object(body))


def chat_request(document: Mapping[str, Any]) -> ChatRequest:
    """As `parse_chat_request`, from a JSON object."""
    endpoint = document.get("endpoint", CHAT_ENDPOINT)
    if endpoint != CHAT_ENDPOINT:
        raise InvalidRequestError("this provider serves chat completions only", param="endpoint")
    _refuse_unserved(document)
    read = _Reader(document)
    stream_options = document.get("stream_options") or {}
    include_usage = isinstance(stream_options, dict) and stream_options.get("include_usage") is True
    return ChatRequest(
        model=model_of(document),
        messages=_messages(document.get("messages")),
        stream=read.boolean("stream"),
        include_usage=include_usage,
        max_tokens=max_tokens_of(document) or DEFAULT_MAX_TOKENS,
        temperature=read.number("temperature", DEFAULT_TEMPERATURE, 0, 2),
        top_p=read.number("top_p", DEFAULT_TOP_P, 0, 1),
        top_k=read.integer("top_k", 0, 0, 2**31 - 1),
        min_p=read.number("min_p", 0.0, 0, 1),
        repetition_penalty=read.number("repetition_penalty", 1.0, 0.01, 10),
        seed=_seed(document.get("seed")),
        stop=_stops(document.get("stop")),
    )


def model_of(document: Mapping[str, Any]) -> str:
    """The model asked for.

    Raises:
        InvalidRequestError: Absent, empty or not text.
    """
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError("model must be a non-empty string", param="model")
    return model


def max_tokens_of(document: Mapping[str, Any]) -> int | None:
    """The bound on the answer in tokens: the first that is given of the three spellings.

    Raises:
        InvalidRequestError: A bound that is given is zero, negative or not a whole number.
    """
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if document.get(name) is not None:
            return _Reader(document).integer(name, 0, 1, 2**31 - 1)
    return None


# ---------------------------------------------------------------- the answer


def event(document: Mapping[str, object]) -> str:
    """One server-sent event line: `data: ` and compact JSON, without the line's end."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"data: {text}"


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


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Reader:
    document: Mapping[str, Any]

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.document.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequestError(f"{name} must be a number", param=name)
        if not low <= value <= high:
            raise InvalidRequestError(f"{name} must be between {low} and {high}", param=name)
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.document.get(name)
        if value is None:
            return default
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise InvalidRequestError(f"{name} must be a whole number", param=name)
        if not low <= value <= high:
            raise InvalidRequestError(f"{name} must be between {low} and {high}", param=name)
        return int(value)

    def boolean(self, name: str) -> bool:
        value = self.document.get(name)
        if value is not None and not isinstance(value, bool):
            raise InvalidRequestError(f"{name} must be true or false", param=name)
        return bool(value)


def _refuse_unserved(document: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        value = document.get(name)
        if value is not None and value not in neutral:
            raise InvalidRequestError(f"{name} is not served by this provider", param=name)


def _messages(value: object) -> tuple[Mapping[str, object], ...]:
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("messages must be a non-empty list", param="messages")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str) -> Mapping[str, object]:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequestError(f"{where}.role is missing or unknown", param="messages")
    if role == "developer":
        role = "system"
    return {"role": role, "content": _content(item.get("content"), where)}


def _content(value: object, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where}.content must be text or a list", param="messages")
    texts: list[str] = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise InvalidRequestError(f"{where}.content may hold text only", param="messages")
        texts.append(text)
    return "\n".join(texts)


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise InvalidRequestError("stop must be a non-empty string or a list of them", param="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidRequestError(f"stop may hold {MAX_STOPS} strings at most", param="stop")
    return tuple(stops)


def _seed(value: object) -> int | None:
    if value is None:
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or not whole:
        raise InvalidRequestError("seed must be a whole number", param="seed")
    # The network rewrites numbers through float64, so any integer may arrive rounded.
    return int(value) % 2**64


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
