"""From the body of a request to a `TextRequest`, by the endpoint it was sent to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from darkbloom_provider.protocol.requests.anthropic import anthropic
from darkbloom_provider.protocol.requests.chat import chat
from darkbloom_provider.protocol.requests.completions import completions
from darkbloom_provider.protocol.requests.document import InvalidRequestError, parse_object
from darkbloom_provider.protocol.requests.request import (
    ALL_FEATURES,
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    MESSAGES_ENDPOINT,
    TextRequest,
)
from darkbloom_provider.protocol.requests.shared import refuse_unserved

_DIALECTS: Final = {
    CHAT_ENDPOINT: chat,
    COMPLETIONS_ENDPOINT: completions,
    MESSAGES_ENDPOINT: anthropic,
}
_FOREIGN: Final = {
    # Parameters of another dialect, which are refused where they would change the answer.
    CHAT_ENDPOINT: frozenset[str](),
    COMPLETIONS_ENDPOINT: frozenset({"tools", "tool_choice", "top_logprobs"}),
    MESSAGES_ENDPOINT: frozenset({"n", "logprobs", "top_logprobs", "response_format"}),
}


def read_request(body: bytes, served: frozenset[str] = ALL_FEATURES) -> TextRequest:
    """Read and check the body of a request.

    Args:
        body: The JSON text, with the key `endpoint` unless it is a chat.
        served: Endpoints and parameters that are served, of `ALL_FEATURES`.

    Raises:
        InvalidRequestError: With the parameter's name and the HTTP status to answer.
    """
    return request_of(parse_object(body), served)


def request_of(document: Mapping[str, Any], served: frozenset[str] = ALL_FEATURES) -> TextRequest:
    """As `read_request`, from a JSON object."""
    endpoint = document.get("endpoint", CHAT_ENDPOINT)
    # A consumer may have written anything there: it is compared with what is known, nothing else.
    dialect = _DIALECTS.get(endpoint) if isinstance(endpoint, str) else None
    if dialect is None or endpoint not in served:
        raise InvalidRequestError("the endpoint is not served by this provider", param="endpoint")
    refuse_unserved(document, served - _FOREIGN[endpoint])
    return dialect(document)
