"""What the link tells others about itself: a frozen snapshot, replaced as a whole."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """Something the owner should know, with what to do about it. Never holds a secret."""

    what: str
    next_step: str
    why: str | None = None


class Phase(enum.StrEnum):
    """Where the link is."""

    CONNECTING = "connecting"
    """Dialling, or registered but not yet answered by the coordinator."""
    REGISTERED = "registered"
    """The coordinator has taken the registration and challenged it."""
    WAITING = "waiting"
    """Not connected; dials again at `retry_at`."""
    REFUSED = "refused"
    """The coordinator turned this machine away; the owner has to act. Dials again at `retry_at`."""
    DRAINING = "draining"
    """Takes no new work; finishes what runs."""
    CLOSED = "closed"
    """Done. Not started yet, drained or stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """The link at one moment. All times are seconds of the clock that the link was given."""

    url: str
    phase: Phase = Phase.CLOSED
    since: float = 0.0
    """When this phase began."""
    registered_at: float | None = None
    """When the coordinator accepted the present connection; None without one."""
    attempts: int = 0
    """Failures in a row since the link was last steady. Sets the next delay."""
    retry_at: float | None = None
    """When it dials again; only while waiting or refused."""
    last_problem: Problem | None = None
    """The latest trouble that is not known to be over."""
