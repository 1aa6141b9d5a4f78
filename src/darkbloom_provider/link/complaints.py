"""What the coordinator holds against this machine, kept until it is over. Pure.

Two messages speak of it: `runtime_status`, which only ever complains and falls silent when all is
well, and `routing_status`, an extension that also says when it is over.
"""

from __future__ import annotations

from typing import Final

from darkbloom_provider.link.actions import ClearProblem, ShowProblem
from darkbloom_provider.link.failure import printable
from darkbloom_provider.link.state import Problem
from darkbloom_provider.protocol.messages import RoutingReason, RoutingStatus, RuntimeStatus

SHOWN_REASONS: Final = 8
_REASON_CHARACTERS: Final = 200
_NAME_CHARACTERS: Final = 80

Shown = list[ShowProblem | ClearProblem]


class Complaints:
    """The complaints of one connection. Each method answers what the owner is to be shown."""

    def __init__(self) -> None:
        self._mismatch: Problem | None = None
        """What is wrong with this build's runtime."""
        self._repeated = False
        """Whether that was said after the latest challenge."""
        self._unrouted: Problem | None = None
        """Why no work is sent."""
        self._shown: Problem | None = None

    def registering(self) -> Shown:
        """This machine registers: a coordinator tells anew to whom it takes in anew."""
        self._unrouted = None
        return self._show()

    def challenged(self) -> Shown:
        """A challenge came."""
        if not self._repeated:
            # The answer to the previous challenge was not followed by a complaint.
            self._mismatch = None
        self._repeated = False
        return self._show()

    def runtime(self, status: RuntimeStatus) -> Shown:
        """The coordinator speaks of the runtime."""
        if status.verified:
            self._mismatch = None
            return self._show()
        self._repeated = True
        components = ", ".join(printable(m.component, 40) for m in status.mismatches[:8])
        self._mismatch = Problem(
            "The coordinator does not accept this build's runtime, so no work comes",
            "update darkbloom, or ask the coordinator's operator to list its hashes",
            f"not listed: {components}" if components else None,
        )
        self._shown = None  # Said again, shown again.
        return self._show()

    def routing(self, status: RoutingStatus) -> Shown:
        """The coordinator says why it sends no work, or that it does."""
        self._unrouted = None
        if not status.routable or status.reasons:
            self._unrouted = _unrouted(status)
        return self._show()

    def _show(self) -> Shown:
        """The complaint that matters most, if it is another one than before."""
        before, self._shown = self._shown, self._mismatch or self._unrouted
        if self._shown == before:
            return []
        return [ClearProblem() if self._shown is None else ShowProblem(self._shown)]


def _unrouted(status: RoutingStatus) -> Problem:
    what = (
        "The coordinator sends no work for some of this machine's models"
        if status.routable
        else "The coordinator sends this machine no work"
    )
    told = status.reasons[:SHOWN_REASONS]
    steps = [printable(reason.next_step, _REASON_CHARACTERS) for reason in told if reason.next_step]
    return Problem(
        what,
        steps[0] if steps else "type `darkbloom doctor`",
        "; ".join(_in_words(reason) for reason in told) or None,
    )


def _in_words(reason: RoutingReason) -> str:
    what = printable(reason.what, _REASON_CHARACTERS) or "no reason is given"
    return what if reason.model is None else f"{printable(reason.model, _NAME_CHARACTERS)} {what}"
