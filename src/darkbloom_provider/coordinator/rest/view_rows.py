"""A view's rows as replies show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, ClassVar, Protocol

from darkbloom_provider.coordinator.rest.replies import rfc3339
from darkbloom_provider.protocol.money import decimal_usd


class ViewRow(Protocol):
    """A view's row: a dataclass whose fields are named as in the reply."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def shape(row: ViewRow) -> dict[str, Any]:
    """One row as JSON."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    return {
        name: rfc3339(value) if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def shapes(rows: Sequence[ViewRow]) -> list[dict[str, Any]]:
    """Rows as JSON."""
    return [shape(row) for row in rows]


def both(name: str, micro_usd: int) -> dict[str, Any]:
    """An amount twice: as an integer, and as text for people."""
    return {f"{name}_micro_usd": micro_usd, f"{name}_usd": decimal_usd(micro_usd)}
