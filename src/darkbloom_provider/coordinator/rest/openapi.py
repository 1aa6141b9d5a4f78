"""The OpenAPI 3.1 document of a coordinator's REST interface, from its endpoints' declarations."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider import __version__
from darkbloom_provider.coordinator.inference import sealing
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE, Access
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import ERROR, Operation, mapping, optional, record
from darkbloom_provider.coordinator.rest.shapes import TEXT as TEXT_SCHEMA

PATH: Final = "/openapi.json"

_PAGE: Final = "text/html"
_ERROR_SHAPES: Final = {"application/json": {"$ref": "#/components/schemas/Error"}}
_SCHEMES: Final = {
    "credential": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (`eigeninference-…`), a session token (`eyJ…`), where the "
        "operation says so a machine's token (`eigeninference-pt-…`), or the operator's key.",
    },
    "key_header": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, as Anthropic's clients send it. A bearer token comes first.",
    },
}
_ENVELOPE: Final = record(
    kid=optional(TEXT_SCHEMA), ephemeral_public_key=TEXT_SCHEMA, ciphertext=TEXT_SCHEMA
)
_SEALED_REPLY: Final = record(kid=TEXT_SCHEMA, ciphertext=TEXT_SCHEMA)
_CALLERS: Final = {
    None: "Anybody.",
    "any": "An API key, a session, or the operator's key.",
    "user": "A person: a session or an API key of theirs.",
    "session": "A person who has signed in: a session token.",
    "admin": "The operator: the admin key, or an administrator's session or API key.",
    "administrator": "An administrator: their session or API key, not the admin key.",
}
_ERRORS: Final = {
    400: "The request makes no sense.",
    401: "The credential is missing or not valid here.",
    402: "The balance is too small.",
    403: "The credential is good, and not enough.",
    404: "There is no such thing.",
    408: "The body was not sent in time.",
    409: "It conflicts with what is there.",
    410: "It has expired or was used.",
    413: "The body is too large.",
    422: "The body is JSON of another shape.",
    429: "Too many requests; `Retry-After` says when to come back.",
    500: "A defect of the coordinator.",
    502: "Another service failed.",
    503: "Not available now; nothing was done.",
    504: "It took too long.",
}


def endpoint(others: Sequence[Endpoint]) -> Endpoint:
    """The endpoint that serves the document of itself and `others`."""

    async def serve(_request: Request) -> Response:
        return json_reply(made)

    operation = Operation(
        "This document", record(openapi=TEXT_SCHEMA, paths=mapping({"type": "object"}))
    )
    itself = Endpoint("GET", PATH, serve, ANYONE, operation)
    made = document([*others, itself])
    return itself


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for declared in endpoints:
        if declared.operation.media_type == _PAGE:
            continue
        paths.setdefault(declared.path, {})[declared.method.lower()] = _operation(declared)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "darkbloom coordinator",
            "version": __version__,
            "description": "Amounts called *_micro_usd are integers; one dollar is 1 000 000.",
        },
        "paths": paths,
        "components": {"securitySchemes": _SCHEMES, "schemas": {"Error": ERROR}},
    }


def _operation(declared: Endpoint) -> dict[str, Any]:
    access, operation = declared.access, declared.operation
    name = declared.path.removeprefix("/v1").strip("/").replace("/", "_").replace("-", "_")
    described: dict[str, Any] = {
        "operationId": f"{declared.method.lower()}_{name}",
        "summary": operation.summary,
        "description": f"Who may call it: {_caller(access)}",
        "responses": _responses(access, operation),
    }
    if access.guard is not None:
        described["security"] = [{"credential": []}]
        if access.key_header:
            described["security"].append({"key_header": []})
    parameters = [
        _parameter(name, where, schema, operation)
        for where, given in (("query", operation.query), ("header", operation.headers))
        for name, schema in given.items()
    ]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {
            "required": "required" in operation.body,
            "content": {"application/json": {"schema": operation.body}},
        }
        if operation.sealable:
            described["requestBody"]["content"][sealing.MEDIA_TYPE] = {"schema": _ENVELOPE}
    return described


def _caller(access: Access) -> str:
    text = _CALLERS[access.guard]
    return f"{text} Also a machine's token." if access.device_token else text


def _parameter(name: str, where: str, schema: dict[str, Any], about: Operation) -> dict[str, Any]:
    required = where == "query" and name in about.required_query
    return {"name": name, "in": where, "required": required, "schema": schema}


def _responses(access: Access, operation: Operation) -> dict[str, Any]:
    good: dict[str, Any] = {"description": HTTPStatus(operation.status).phrase}
    if operation.reply is not None:
        content = {operation.media_type: operation.reply, **operation.also}
        if operation.sealable:
            content[sealing.MEDIA_TYPE] = _SEALED_REPLY
        good["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    responses = {str(operation.status): good}
    for status in operation.also_statuses:
        responses[str(status)] = {**good, "description": HTTPStatus(status).phrase}
    error = _ERROR_SHAPES.get(operation.error_media_type, TEXT_SCHEMA)
    for status in sorted(_expected_errors(access, operation)):
        responses[str(status)] = {
            "description": _ERRORS[status],
            "content": {operation.error_media_type: {"schema": error}},
        }
        if operation.sealable:
            responses[str(status)]["content"][sealing.MEDIA_TYPE] = {"schema": _SEALED_REPLY}
    return responses


def _expected_errors(access: Access, operation: Operation) -> set[int]:
    expected = {503, *operation.errors}
    if access.guard is not None:
        expected.add(401)
    if access.guard in {"session", "admin", "administrator"}:
        expected.add(403)
    if access.tier is not None:
        expected.add(429)
    if operation.query:
        expected.add(400)
    if operation.body is not None:
        expected |= {400, 408, 413}
    return expected
