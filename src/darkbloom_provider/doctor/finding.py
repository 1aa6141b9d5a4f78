"""What a check found, and the runner that never waits longer than its limit."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from darkbloom_provider.errors import DarkbloomError

LIMIT_S: Final = 30.0
"""Seconds for the whole examination. Every tool that is asked has a shorter limit of its own."""
_THREADS: Final = "doctor "


class Verdict(enum.StrEnum):
    """How a fact stands."""

    OK = "ok"
    NOTE = "note"
    """As it is, neither good nor bad: what does not exist here, or was not set up yet."""
    UNKNOWN = "unknown"
    """It could not be found out. Never counted as good."""
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Repair:
    """Something that can be put right without a decision of the owner's."""

    what: str
    """In the past tense, for when it has been done."""
    do: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact."""

    check: str
    verdict: Verdict
    evidence: str
    """What it was read from, in one line."""
    next_step: str | None = None
    repair: Repair | None = None


Check = Callable[[], Iterable[Finding]]
"""Finds out. May raise `DarkbloomError`, which says what is wrong by itself."""


def ok(check: str, evidence: str) -> Finding:
    """It is as it should be."""
    return Finding(check, Verdict.OK, evidence)


def note(check: str, evidence: str, next_step: str | None = None) -> Finding:
    """It is as it is."""
    return Finding(check, Verdict.NOTE, evidence, next_step)


def unknown(check: str, evidence: str, next_step: str | None = None) -> Finding:
    """It could not be found out."""
    return Finding(check, Verdict.UNKNOWN, evidence, next_step)


def wrong(
    check: str, evidence: str, next_step: str | None = None, repair: Repair | None = None
) -> Finding:
    """It is not as it should be."""
    return Finding(check, Verdict.WRONG, evidence, next_step, repair)


def examine(checks: Mapping[str, Check], limit_s: float = LIMIT_S) -> list[Finding]:
    """Run all checks beside each other; findings come in the order of `checks`.

    A check that has not ended after `limit_s` seconds is left behind on its thread, which does not
    keep the process alive.
    """
    found: dict[str, Sequence[Finding]] = {}
    threads = {
        name: threading.Thread(
            target=_run, args=(name, check, found), name=_THREADS + name, daemon=True
        )
        for name, check in checks.items()
    }
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    late = {name: (unknown(name, f"no answer within {limit_s:g} s"),) for name in checks}
    return [finding for name in checks for finding in {**late, **found}[name]]


def someone_is_left() -> bool:
    """Whether a check that was given up still runs in this process."""
    return any(thread.name.startswith(_THREADS) for thread in threading.enumerate())


def _run(name: str, check: Check, found: dict[str, Sequence[Finding]]) -> None:
    try:
        found[name] = tuple(check())
    except DarkbloomError as error:
        found[name] = (wrong(name, str(error), error.next_step),)
    except Exception as error:  # noqa: BLE001 - one check must not keep the others from being told
        # The text of a foreign exception may hold anything: its type is all that is told.
        found[name] = (unknown(name, f"the check itself failed: {type(error).__name__}"),)
