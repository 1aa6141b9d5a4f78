"""The endpoints that ask a model, and the one with the key that requests may be sealed for."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.inference import sealing
from darkbloom_provider.coordinator.inference.endpoint import Inference
from darkbloom_provider.coordinator.ledger.tab import Books
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANY, ANYONE, Access
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    ANYTHING,
    BOOLEAN,
    NON_EMPTY,
    TEXT,
    Operation,
    Schema,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.requests.request import (
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    MESSAGES_ENDPOINT,
    RESPONSES_ENDPOINT,
)

_CONVERSATION: Final[Schema] = {
    "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}}
}
_TEXTS: Final[Schema] = {
    "prompt": {"anyOf": [NON_EMPTY, {"type": "array", "minItems": 1, "items": NON_EMPTY}]}
}
_INPUT: Final[Schema] = {
    "input": {"anyOf": [NON_EMPTY, {"type": "array", "minItems": 1, "items": {"type": "object"}}]}
}
_MAY_BE_KEPT: Final = {"Cache-Control": "public, max-age=300"}


def endpoints(services: Services, hub: Hub, books: Books) -> list[Endpoint]:
    """The endpoints' declarations, bound to the coordinator's parts."""
    callers = ANY.limited("consumer")

    def asks(path: str, what: str, access: Access, asked: Schema) -> Endpoint:
        operation = Operation(
            f"{what}; the answer is one object, or with `stream` an event stream",
            ANYTHING,
            record(model=NON_EMPTY, stream=optional(BOOLEAN), **asked),
            errors=(402, 404, 502, 504),
            sealable=True,
        )
        return Endpoint("POST", path, Inference(services, hub, books, path), access, operation)

    return [
        _key_endpoint(services),
        asks(CHAT_ENDPOINT, "Ask a model, in OpenAI's chat", callers, _CONVERSATION),
        asks(COMPLETIONS_ENDPOINT, "Have a text continued", callers, _TEXTS),
        asks(RESPONSES_ENDPOINT, "Ask a model, in OpenAI's responses", callers, _INPUT),
        asks(
            MESSAGES_ENDPOINT,
            "Ask a model, in Anthropic's messages",
            callers.with_key_header(),
            _CONVERSATION,
        ),
    ]


def _key_endpoint(services: Services) -> Endpoint:
    async def key(_request: Request) -> Response:
        return json_reply(sealing.told(services.sealing), headers=_MAY_BE_KEPT)

    return Endpoint(
        "GET",
        "/v1/encryption-key",
        key,
        ANYONE,
        Operation(
            "The key that requests to the four endpoints that ask a model may be sealed for",
            record(kid=TEXT, public_key=TEXT, algorithm=one_of(sealing.ALGORITHM)),
        ),
    )
