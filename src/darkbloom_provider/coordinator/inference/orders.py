"""A consumer's request as the coordinator understands it: who may serve it, and what it may cost.

The body goes to the provider as it came, but for what the network changes: a limit is put in where
the consumer gave none, routing wishes are taken out, completions and messages name their endpoint,
and what was sent as a response is rewritten into a chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from darkbloom_provider.coordinator.inference import estimate
from darkbloom_provider.coordinator.inference.dialects import Asked, Dialect
from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.routing.choice import Demand
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.answers.responses import repeated
from darkbloom_provider.protocol.money import Price
from darkbloom_provider.protocol.openai import (
    CHAT_ENDPOINT,
    DEFAULT_MAX_TOKENS,
    InvalidRequestError,
    max_tokens_of,
    model_of,
    parse_object,
)
from darkbloom_provider.protocol.requests.completions import MAX_PROMPTS
from darkbloom_provider.protocol.requests.request import (
    COMPLETIONS_ENDPOINT,
    MESSAGES_ENDPOINT,
    RESPONSES_ENDPOINT,
)
from darkbloom_provider.protocol.requests.responses import responses_as_chat

_PINS: Final = ("provider_serial", "provider_serials")
_ENDPOINTS: Final[Mapping[Dialect, str]] = {
    "completions": COMPLETIONS_ENDPOINT,
    "messages": MESSAGES_ENDPOINT,
}
"""What providers are told, which take anything else for a chat."""


@dataclass(frozen=True, slots=True)
class Order:
    """One request, checked. Its content never shows in a representation."""

    demand: Demand
    most_prompt_tokens: int
    """What is reserved for; the demand has what is expected."""
    price: Price
    stream: bool
    asked: Asked
    """How the consumer reads the answer."""
    body: bytes = field(repr=False)
    """What the provider gets to read."""

    @property
    def model(self) -> str:
        """The id that was asked for."""
        return self.demand.model


def read_order(body: bytes, catalogue: Catalogue, endpoint: str = CHAT_ENDPOINT) -> Order:
    """Check the body of a request to one of the four endpoints.

    What only the provider can judge (roles, sampling, tools) is left to it.

    Raises:
        InvalidRequestError: 400 or 413, naming the parameter.
        ApiError: 404 `model_not_found`.
    """
    document = parse_object(body)
    model = model_of(document)
    listed = next((m for m in catalogue.entries if m.id == model and m.active), None)
    if listed is None:
        raise ApiError(
            HTTPStatus.NOT_FOUND, "model_not_found", f"there is no model {model[:200]!r} here"
        )
    dialect = _dialect(document, endpoint)
    demand = Demand(
        model=model,
        prompt_tokens=estimate.prompt_tokens(document),
        max_output_tokens=estimate.output_tokens(document) * _prompts(document, dialect),
        size_gb=listed.size_gb,
        serials=_pinned(document),
    )
    return Order(
        demand=demand,
        most_prompt_tokens=estimate.most_prompt_tokens(document),
        price=catalogue.price(model),
        stream=_stream(document),
        asked=Asked(
            dialect,
            model,
            demand.prompt_tokens,
            include_usage=_include_usage(document),
            repeated=repeated(document) if dialect == "responses" else {},
        ),
        body=_forwarded(document, body, dialect),
    )


def _dialect(document: Mapping[str, Any], endpoint: str) -> Dialect:
    """The dialect, if what is to be answered is there."""
    if endpoint == COMPLETIONS_ENDPOINT:
        if not document.get("prompt"):
            raise InvalidRequestError("prompt must not be empty", param="prompt")
        return "completions"
    if endpoint == MESSAGES_ENDPOINT:
        _conversation(document)
        return "messages"
    # The network serves chat and responses at both paths: what is asked decides.
    asked = document.get("input") is not None or endpoint == RESPONSES_ENDPOINT
    if asked and not document.get("messages"):
        return "responses"
    _conversation(document)
    return "chat"


def _conversation(document: Mapping[str, Any]) -> None:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError("messages must be a non-empty list", param="messages")


def _prompts(document: Mapping[str, Any], dialect: Dialect) -> int:
    prompt = document.get("prompt")
    if dialect != "completions" or not isinstance(prompt, list):
        return 1
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(f"prompt may hold {MAX_PROMPTS} texts at most", param="prompt")
    return len(prompt)


def _stream(document: Mapping[str, Any]) -> bool:
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError("stream must be true or false", param="stream")
    return bool(stream)


def _include_usage(document: Mapping[str, Any]) -> bool:
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _pinned(document: Mapping[str, Any]) -> frozenset[str]:
    serials: set[str] = set()
    for name in _PINS:
        if name not in document:
            continue
        value = document[name]
        wanted = [value] if isinstance(value, str) else value
        if (
            not isinstance(wanted, list)
            or not wanted
            or not all(isinstance(serial, str) and serial for serial in wanted)
        ):
            raise InvalidRequestError(
                f"{name} must be a serial number or a list of them",
                param=name,
            )
        serials.update(wanted)
    return frozenset(serials)


def _forwarded(document: dict[str, Any], body: bytes, dialect: Dialect) -> bytes:
    # A consumer's own `endpoint` would have the provider answer another dialect than was priced.
    ours = (*_PINS, "endpoint")
    endpoint = _ENDPOINTS.get(dialect)
    unlimited = max_tokens_of(document) is None
    if dialect == "chat" and not unlimited and not any(name in document for name in ours):
        return body
    chat = responses_as_chat(document) if dialect == "responses" else document
    changed = {name: value for name, value in chat.items() if name not in ours}
    if unlimited:
        changed["max_tokens"] = DEFAULT_MAX_TOKENS
    if endpoint is not None:
        changed["endpoint"] = endpoint
    return json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
