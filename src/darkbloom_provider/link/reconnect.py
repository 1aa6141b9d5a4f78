"""When to dial again. Pure: a failure in, a verdict and a delay out.

Retried with full-jitter exponential backoff: everything that may pass by itself. Refused, which
means said aloud and tried again only rarely: what the owner has to settle first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from darkbloom_provider.link.failure import (
    CLOSE_FORBIDDEN,
    CLOSE_UNAUTHORIZED,
    Failure,
    HttpRejected,
    SocketClosed,
)
from darkbloom_provider.link.state import Problem

BASE_S: Final = 1.0
CAP_S: Final = 30.0
STEADY_S: Final = 30.0
"""A link counts as good again, and its backoff starts over, after this long registered."""
REFUSED_S: Final = 900.0
"""Between attempts while the owner has something to settle."""
REPLACED_S: Final = 600.0
"""Before taking the place back from another process of the same machine."""
RETRY_AFTER_CAP_S: Final = 300.0
"""The longest `Retry-After` that is obeyed."""

_REFUSING_STATUSES: Final = frozenset(
    {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UPGRADE_REQUIRED}
)
_REFUSING_CODES: Final = frozenset({CLOSE_UNAUTHORIZED, CLOSE_FORBIDDEN})


@dataclass(frozen=True, slots=True)
class Retry:
    """It may pass by itself: dial again with backoff, but not before `at_least_s` seconds."""

    problem: Problem
    at_least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """The owner has something to settle: dial again after about `retry_s` seconds."""

    problem: Problem
    retry_s: float = REFUSED_S


Verdict = Retry | Refused


def retry_or_refuse(failure: Failure) -> Verdict:
    """What follows from a failure. The one place where this is decided."""
    problem = failure.problem()
    match failure:
        case HttpRejected(status=status) if status in _REFUSING_STATUSES:
            return Refused(problem)
        case HttpRejected(retry_after_s=float(wanted)):
            return Retry(problem, min(max(wanted, 0.0), RETRY_AFTER_CAP_S))
        case SocketClosed(replaced=True):
            return Refused(problem, REPLACED_S)
        case SocketClosed(code=code) if code in _REFUSING_CODES:
            return Refused(problem)
        case _:
            return Retry(problem)


def backoff_s(attempts: int, random: Callable[[], float]) -> float:
    """Seconds to wait after `attempts` earlier failures in a row: full jitter, capped at 30 s.

    Uniform in [0, min(30, 2^attempts)), as in "Exponential Backoff And Jitter" (AWS Architecture
    Blog). `random` returns a number in [0, 1).
    """
    exponent = min(attempts, 16)  # far past the cap, and safe from overflow
    return random() * min(CAP_S, BASE_S * 2.0**exponent)


def wait_s(verdict: Verdict, attempts: int, random: Callable[[], float]) -> float:
    """Seconds until the next dial. Refusals are spread by a quarter to either side."""
    if isinstance(verdict, Refused):
        return verdict.retry_s * (0.75 + 0.5 * random())
    return max(verdict.at_least_s, backoff_s(attempts, random))


def attempts_after(attempts: int, registered_for_s: float | None) -> int:
    """Failures in a row once a connection has ended that was registered so long (None: never)."""
    steady = registered_for_s is not None and registered_for_s >= STEADY_S
    return 0 if steady else attempts
