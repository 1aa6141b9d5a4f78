"""A request's JSON, read field by field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NoReturn

from darkbloom_provider.errors import DarkbloomError

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_VALUES: Final = 500_000
"""Commas and brackets of a body. The parser builds millions of values in one go, for seconds, and
meanwhile nobody answers the coordinator; text with so many of them fits no model's context."""
MAX_STOPS: Final = 16
MAX_IGNORED: Final = 32
"""Names of unknown parameters that are remembered of one request."""

_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


class InvalidRequestError(DarkbloomError):
    """The consumer's request makes no sense. The message is safe to show: it quotes no content."""

    def __init__(
        self, message: str, *, param: str | None = None, status_code: int = HTTPStatus.BAD_REQUEST
    ) -> None:
        super().__init__(message)
        self.param = param
        """The parameter at fault, if one is."""
        self.status_code = int(status_code)


def refused(param: str, message: str) -> InvalidRequestError:
    """The error for a parameter; `message` goes on after its name."""
    return InvalidRequestError(f"{param} {message}", param=param)


def parse_object(body: bytes) -> dict[str, Any]:
    """A request body as a JSON object.

    Raises:
        InvalidRequestError: Too large (413), not JSON, or not an object (400).
    """
    if len(body) > MAX_BODY_BYTES:
        raise InvalidRequestError(
            f"the request body is larger than {MAX_BODY_BYTES} bytes",
            status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise InvalidRequestError(
            "the request body has too many values",
            status_code=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    try:
        text = body.decode()
        document = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            # Half of a surrogate pair is valid JSON, but no text that can be encoded again.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InvalidRequestError("the request body is not valid JSON") from None
    if not isinstance(document, dict):
        raise InvalidRequestError("the request body must be a JSON object")
    return document


class Reader:
    """Reads fields, and knows in the end which ones nobody asked for.

    Every method raises `InvalidRequestError` with the field's name for a value that is given but
    wrong. Null is absent.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._known: set[str] = set()

    def get(self, name: str) -> Any:  # noqa: ANN401 — foreign JSON
        """The field as it stands; None if absent."""
        self._known.add(name)
        return self._document.get(name)

    def know(self, *names: str) -> None:
        """Count these as read: they were judged elsewhere."""
        self._known.update(names)

    def ignored(self) -> tuple[str, ...]:
        """Names of the fields that were not read, for counting.

        A name is the consumer's text and may be anything: only plain ones are told.
        """
        names = {name for name in self._document if name not in self._known}
        told = {name if _PLAIN_NAME.fullmatch(name) else "?" for name in names}
        return tuple(sorted(told)[:MAX_IGNORED])

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refused(name, "must be a number")
        if not low <= value <= high:
            raise refused(name, f"must be between {low} and {high}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number between `low` and `high`, also if written as `8192.0`."""
        value = self.get(name)
        if value is None:
            return default
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise refused(name, "must be a whole number")
        if not low <= value <= high:
            raise refused(name, f"must be between {low} and {high}")
        return int(value)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """A truth value."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise refused(name, "must be true or false")
        return value

    def object(self, name: str) -> dict[str, Any] | None:
        """A JSON object."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise refused(name, "must be an object")
        return value

    def stops(self, name: str) -> tuple[str, ...]:
        """Stop strings: one or a list."""
        value = self.get(name)
        if value is None:
            return ()
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
            raise refused(name, "must be a non-empty string or a list of them")
        if len(stops) > MAX_STOPS:
            raise refused(name, f"may hold {MAX_STOPS} strings at most")
        return tuple(stops)

    def seed(self) -> int | None:
        """Any whole number, brought into 64 bits."""
        value = self.get("seed")
        if value is None:
            return None
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not isinstance(value, int | float) or not whole:
            raise refused("seed", "must be a whole number")
        # The network rewrites numbers through float64, so any integer may arrive rounded.
        return int(value) % 2**64

    def limit(self) -> int | None:
        """The bound on the answer in tokens: the first that is given of the three spellings."""
        self.know(*_LIMITS)
        return max_tokens_of(self._document)

    def logit_bias(self) -> tuple[tuple[int, float], ...]:
        """Pairs of token id and what is added to its logit, by id."""
        name = "logit_bias"
        biases: dict[int, float] = {}
        for key, value in (self.object(name) or {}).items():
            if not (key.isascii() and key.isdigit()) or len(key) > len(str(2**31)):
                raise refused(name, "must map token ids to numbers")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise refused(name, "must map token ids to numbers")
            if not -100 <= value <= 100:  # noqa: PLR2004 — the dialect's range
                raise refused(name, "must hold numbers between -100 and 100")
            biases[int(key)] = float(value)
        return tuple(sorted(biases.items()))


def model_of(document: Mapping[str, Any]) -> str:
    """The model asked for.

    Raises:
        InvalidRequestError: Absent, empty or not text.
    """
    model = document.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError("model must be a non-empty string", param="model")
    return model


def max_tokens_of(document: Mapping[str, Any]) -> int | None:
    """The bound on the answer in tokens: the first that is given of the three spellings.

    Raises:
        InvalidRequestError: A bound that is given is zero, negative or not a whole number.
    """
    for name in _LIMITS:
        if document.get(name) is not None:
            return Reader(document).integer(name, 0, 1, 2**31 - 1)
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    # `1e999` is JSON, but infinity is not: such a number could not be passed on.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
