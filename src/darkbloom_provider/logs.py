"""Structured logs. Lines carry names and numbers, never a prompt, a completion, a key or a token.

Text from a consumer and secrets have types of their own (`Secret` here), whose representation is
redacted, so that handing one to a logger by mistake shows nothing.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

REDACTED: Final = "[redacted]"

_SECRET_SHAPES: Final = re.compile(
    r"eigeninference-(?:pt-)?[0-9a-f]{8,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+|(?i:bearer)\s+\S+"
)
"""API keys, device tokens and session tokens as `rest.md` section 2 spells them."""


class Secret:
    """Text that must never be shown: tokens, keys, prompts, completions.

    `reveal()` is the only way to the text, so every use is easy to find.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({REDACTED})"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def redact(text: str) -> str:
    """`text` with everything shaped like a credential replaced."""
    return _SECRET_SHAPES.sub(REDACTED, text)


def _redact_values(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


def configure(*, verbose: bool = False, stream: TextIO | None = None, json: bool = False) -> None:
    """Set up logging for a whole process. Called once, by the composition root.

    Args:
        verbose: Show debug lines.
        stream: Where lines go; standard error by default.
        json: One JSON object a line instead of text.
    """
    target = sys.stderr if stream is None else stream
    renderer: Any = (
        structlog.processors.JSONRenderer(allow_nan=False)
        if json
        else structlog.dev.ConsoleRenderer(colors=target.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _redact_values,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=target, force=True)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a room."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(room=name)
    return logger
