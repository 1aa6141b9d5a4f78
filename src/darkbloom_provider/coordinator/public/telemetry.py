"""What clients report about themselves, made safe to keep.

Source: the network's telemetry rules for words, limits and the allow-list of fields. Beyond them,
nothing that may quote a prompt is kept: of free text only its length and a digest to group by, of
a field only what is a number, a flag or a single plain word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from darkbloom_provider import logs

MAX_EVENTS: Final = 100
MAX_BODY_BYTES: Final = 65_536
MAX_MESSAGE: Final = 4_096
MAX_STACK: Final = 32_768
MAX_FIELDS_BYTES: Final = 8_192
OLDEST: Final = timedelta(days=7)
NEWEST: Final = timedelta(minutes=5)

SOURCES: Final = frozenset({"coordinator", "provider", "app", "console", "bridge"})
SEVERITIES: Final = frozenset({"debug", "info", "warn", "error", "fatal"})
KINDS: Final = frozenset(
    {
        "panic",
        "http_error",
        "protocol_error",
        "backend_crash",
        "attestation_failure",
        "inference_error",
        "runtime_mismatch",
        "connectivity",
        "log",
    }
)
FIELDS: Final = frozenset(
    {
        "component",
        "operation",
        "duration_ms",
        "attempt",
        "endpoint",
        "status_code",
        "error_class",
        "error",
        "target",
        "model",
        "backend",
        "exit_code",
        "signal",
        "hardware_chip",
        "memory_gb",
        "macos_version",
        "handler",
        "provider_id",
        "trust_level",
        "queue_depth",
        "reason",
        "runtime_component",
        "reconnect_count",
        "last_error",
        "ws_state",
        "billing_method",
        "payment_failed",
        "url",
        "user_agent",
        "route",
    }
)
_FREE_TEXT: Final = frozenset({"error", "last_error", "url", "user_agent", "target"})
"""Allowed by the network, and written by whoever had something to say."""
_NAMES: Final = {
    **dict.fromkeys(
        ("id", "machine_id", "request_id", "session_id"), re.compile(r"[0-9a-f-]{8,64}", re.ASCII)
    ),
    "version": re.compile(r"[0-9][0-9A-Za-z.+-]{0,31}", re.ASCII),
}
"""What says where an event comes from, and the only shape it may have: an id, not a word."""
_WORD: Final = re.compile(r"[\w.:/+@-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as it is kept."""

    source: str
    severity: str
    kind: str
    at: datetime
    message_characters: int
    message_digest: str
    """Equal for equal messages."""
    stack_characters: int
    named: Mapping[str, str]
    fields: Mapping[str, str | int | float | bool]


def read_event(document: object, *, now: datetime, source: str | None = None) -> Event | None:
    """One event; None for one without a message, which is no event.

    Args:
        document: As it was sent.
        now: The time.
        source: Who sent it, if that is known; it may not speak as another.
    """
    if not isinstance(document, dict):
        return None
    message, stack = document.get("message"), document.get("stack")
    if not isinstance(message, str) or not message.strip():
        return None
    message = message[:MAX_MESSAGE]
    stack = stack[:MAX_STACK] if isinstance(stack, str) else ""
    return Event(
        source=source or _one_of(document.get("source"), SOURCES, "custom"),
        severity=_one_of(document.get("severity"), SEVERITIES, "info"),
        kind=_one_of(document.get("kind"), KINDS, "custom"),
        at=_time(document.get("timestamp"), now),
        message_characters=len(message),
        message_digest=hashlib.sha256(message.encode("utf-8", "replace")).hexdigest()[:12],
        stack_characters=len(stack),
        named={
            name: value
            for name, shape in _NAMES.items()
            if isinstance(value := document.get(name), str) and shape.fullmatch(value)
        },
        fields=_fields(document.get("fields")),
    )


def _fields(given: object) -> dict[str, str | int | float | bool]:
    if not isinstance(given, dict):
        return {}
    try:
        too_large = len(json.dumps(given, allow_nan=False)) > MAX_FIELDS_BYTES
    except (ValueError, RecursionError):
        too_large = True
    if too_large:
        return {}
    kept: dict[str, str | int | float | bool] = {}
    for name in sorted(FIELDS & given.keys()):
        value: Any = given[name]
        if isinstance(value, bool | int | float):
            kept[name] = value
        elif name not in _FREE_TEXT and (word := _word(value)):
            kept[name] = word
    return kept


def _word(value: object) -> str:
    """A single plain word, and no credential; empty otherwise."""
    if not isinstance(value, str) or _WORD.fullmatch(value) is None:
        return ""
    return value if logs.redact(value) == value else ""


def _one_of(value: object, known: frozenset[str], otherwise: str) -> str:
    return value if isinstance(value, str) and value in known else otherwise


def _time(value: object, now: datetime) -> datetime:
    if not isinstance(value, str):
        return now
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        return now
    if instant.tzinfo is None or not now - OLDEST <= instant <= now + NEWEST:
        return now
    return instant
