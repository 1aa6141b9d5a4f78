"""A consumer's request as the coordinator understands it: who may serve it, and what it may cost.

The body goes to the provider as it came, but for the two things the network changes: a limit is
put in where the consumer gave none, and routing wishes are taken out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from darkbloom_provider.coordinator import estimate
from darkbloom_provider.coordinator.replies import ApiError
from darkbloom_provider.coordinator.routing import Demand
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import Price
from darkbloom_provider.protocol.openai import (
    DEFAULT_MAX_TOKENS,
    InvalidRequestError,
    max_tokens_of,
    model_of,
    parse_object,
)

_PINS: Final = ("provider_serial", "provider_serials")


@dataclass(frozen=True, slots=True)
class Order:
    """One chat request, checked. Its content never shows in a representation."""

    demand: Demand
    most_prompt_tokens: int
    """What is reserved for; the demand has what is expected."""
    price: Price
    stream: bool
    body: bytes = field(repr=False)
    """What the provider gets to read."""

    @property
    def model(self) -> str:
        """The id that was asked for."""
        return self.demand.model


def read_order(body: bytes, catalogue: Catalogue) -> Order:
    """Check the body of a chat request.

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
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError("messages must be a non-empty list", param="messages")
    demand = Demand(
        model=model,
        prompt_tokens=estimate.prompt_tokens(document),
        max_output_tokens=estimate.output_tokens(document),
        size_gb=listed.size_gb,
        serials=_pinned(document),
    )
    return Order(
        demand=demand,
        most_prompt_tokens=estimate.most_prompt_tokens(document),
        price=catalogue.price(model),
        stream=_stream(document),
        body=_forwarded(document, body),
    )


def _stream(document: Mapping[str, Any]) -> bool:
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError("stream must be true or false", param="stream")
    return bool(stream)


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


def _forwarded(document: dict[str, Any], body: bytes) -> bytes:
    unlimited = max_tokens_of(document) is None
    if not unlimited and not any(name in document for name in _PINS):
        return body
    changed = {name: value for name, value in document.items() if name not in _PINS}
    if unlimited:
        changed["max_tokens"] = DEFAULT_MAX_TOKENS
    return json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
