"""What consumers read when there is no answer, or no more of it, in the shape of their dialect.

Types and codes are those that the two vendors' own client libraries tell apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from darkbloom_provider.protocol.openai import event
from darkbloom_provider.protocol.requests.request import Dialect

_OPENAI: Final[Mapping[int, tuple[str, str | None]]] = {
    HTTPStatus.UNAUTHORIZED: ("authentication_error", "invalid_api_key"),
    HTTPStatus.FORBIDDEN: ("permission_error", None),
    HTTPStatus.NOT_FOUND: ("invalid_request_error", "model_not_found"),
}
_ANTHROPIC: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request is not answered. The message is safe to show: it quotes no content."""

    status: int
    message: str
    param: str | None = None
    """The parameter at fault, if one is."""

    def body(self, dialect: Dialect) -> bytes:
        """The JSON body of the error's response."""
        return json.dumps(self.document(dialect), separators=(",", ":")).encode()

    def event(self, dialect: Dialect) -> str:
        """The event that ends a stream which failed."""
        text = event(self.document(dialect))
        return f"event: error\n{text}" if dialect == "messages" else text

    def document(self, dialect: Dialect) -> dict[str, Any]:
        """The same body as an object."""
        ours = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if dialect == "messages":
            kind = _ANTHROPIC.get(self.status, "api_error" if ours else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind, code = _OPENAI.get(
            self.status, ("server_error" if ours else "invalid_request_error", None)
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": code}
        return {"error": error}
