"""What endpoints take and answer, as JSON Schema, in as few words as a declaration bears.

`record(name=TEXT, notes=optional(TEXT))` is an object with a required and an optional field. Fields
that are not named are allowed, as everywhere in this protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NUMBER: Final[Schema] = {"type": "number"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
TIME: Final[Schema] = {"type": "string", "format": "date-time"}
USD_TEXT: Final[Schema] = {"type": "string", "pattern": r"^-?\$?[0-9]+(\.[0-9]+)?$"}
"""Dollars as a decimal number in a string."""
TIME_OR_EMPTY: Final[Schema] = {
    "type": "string",
    "anyOf": [{"format": "date-time"}, {"maxLength": 0}],
}
"""In a query nothing behind the equals sign is as good as no parameter."""
COUNT_OR_EMPTY: Final[Schema] = {"anyOf": [COUNT, {"type": "string", "maxLength": 0}]}
NON_EMPTY: Final[Schema] = {"type": "string", "minLength": 1}
CODE: Final[Schema] = {
    "type": "string",
    "pattern": r"^\s*[A-Za-z0-9][A-Za-z0-9-]{1,18}[A-Za-z0-9]\s*$",
}
"""An invite or referral code, in any case."""
ANYTHING: Final[Schema] = {}
ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": TEXT, "message": TEXT},
        }
    },
}

_OPTIONAL: Final = "x-optional"


def record(**fields: Schema) -> Schema:
    """An object with these fields."""
    properties = {
        name: {key: value for key, value in schema.items() if key != _OPTIONAL}
        for name, schema in fields.items()
    }
    required = [name for name, schema in fields.items() if _OPTIONAL not in schema]
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def texts_or_nothing(*names: str) -> Schema:
    """A body that is read as far as it makes sense: every field text, or taken as absent."""
    field_schema = {"description": "Text; anything else is taken as absent."}
    return {
        "description": "An object; anything else is taken as an empty one.",
        "properties": dict.fromkeys(names, field_schema),
    }


def optional(schema: Schema) -> Schema:
    """A field that may be absent."""
    return {**schema, _OPTIONAL: True}


def nullable(schema: Schema) -> Schema:
    """A value or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def maybe(schema: Schema) -> Schema:
    """A field of a body that may be absent or null."""
    return optional(nullable(schema))


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def mapping(values: Schema) -> Schema:
    """An object used as a table: any names, values of one shape."""
    return {"type": "object", "additionalProperties": values}


def one_of(*values: str) -> Schema:
    """One of a few words."""
    return {"type": "string", "enum": list(values)}


def amount(name: str) -> dict[str, Schema]:
    """An amount as replies give it: in micro-USD, and as text for people."""
    return {f"{name}_micro_usd": INTEGER, f"{name}_usd": USD_TEXT}


@dataclass(frozen=True, slots=True)
class Operation:
    """What one endpoint takes and answers."""

    summary: str
    """One line."""
    reply: Schema | None
    """The JSON of a good answer; None if it is not JSON."""
    body: Schema | None = None
    """The JSON it is sent; None for none."""
    query: dict[str, Schema] = field(default_factory=dict)
    """Parameters of the query; none is required unless the operation says so."""
    required_query: tuple[str, ...] = ()
    headers: dict[str, Schema] = field(default_factory=dict)
    status: int = 200
    errors: tuple[int, ...] = ()
    """Errors beyond those that follow from who may call it and from its having a body."""
    media_type: str = "application/json"
    """Of a good answer. Pages (`text/html`) are not part of the interface, nor of its document."""
    error_media_type: str = "application/json"
    sealable: bool = False
    """Whether it also takes and answers what is sealed for the coordinator's key."""
    also: dict[str, Schema] = field(default_factory=dict)
    """Other media types that a good answer may have, with what is in them."""
    also_statuses: tuple[int, ...] = ()
    """Other statuses of a good answer of the same shape."""
