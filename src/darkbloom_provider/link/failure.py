"""Why a connection ended or never began: one frozen value each, with its words for the owner."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from darkbloom_provider.link.state import Problem
from darkbloom_provider.logs import redact

REPLACED_REASON: Final = "replaced by new connection from same device"
CLOSE_NORMAL: Final = 1000
CLOSE_ABNORMAL: Final = 1006
"""Stands for an end without a close frame; never on the wire."""
CLOSE_UNAUTHORIZED: Final = 3000
CLOSE_FORBIDDEN: Final = 3003

_BY_ITSELF: Final = "nothing to do: it reconnects by itself"
_CHECK_URL: Final = "check [coordinator] url in the config file"
_LINK_AGAIN: Final = "run `darkbloom login` to link it again"


def printable(text: str, limit: int = 120) -> str:
    """Foreign text for an owner's eyes: one line, short, nothing shaped like a credential."""
    shown = "".join(c if c.isprintable() else " " for c in redact(text))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No connection: refused, reset, no route, or a name that does not resolve."""

    reason: str

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "The coordinator cannot be reached",
            "check the network; it reconnects by itself",
            printable(self.reason),
        )


@dataclass(frozen=True, slots=True)
class UntrustedCertificate:
    """TLS failed: the certificate is not one this machine trusts."""

    reason: str

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "The coordinator's certificate is not trusted",
            f"check this machine's date and network, and {_CHECK_URL.removeprefix('check ')}",
            printable(self.reason),
        )


@dataclass(frozen=True, slots=True)
class HandshakeTimeout:
    """The server took the connection and did not finish the upgrade in time."""

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem("The coordinator did not answer the call in time", _BY_ITSELF)


@dataclass(frozen=True, slots=True)
class HttpRejected:
    """The upgrade was answered with an HTTP response other than 101."""

    status: int
    retry_after_s: float | None = None

    def problem(self) -> Problem:
        """What to tell the owner."""
        what, next_step = "The coordinator cannot take the connection now", _BY_ITSELF
        match self.status:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                what, next_step = "The coordinator refuses this machine", _LINK_AGAIN
            case HTTPStatus.UPGRADE_REQUIRED:
                what = "The coordinator refuses this version of darkbloom"
                next_step = "update darkbloom, then run `darkbloom stop` and `darkbloom start`"
            case HTTPStatus.TOO_MANY_REQUESTS:
                pass
            case status if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
                what = "The coordinator's address redirects elsewhere, which is not followed"
                next_step = f"{_CHECK_URL}; nothing was sent to the other side"
            case status if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                what = "What answers at the coordinator's address is not a coordinator"
                next_step = _CHECK_URL
        return Problem(what, next_step, f"HTTP {self.status} instead of a websocket")


@dataclass(frozen=True, slots=True)
class NotWebSocket:
    """What answered does not speak HTTP or the websocket protocol."""

    reason: str

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "What answers at the coordinator's address is not a coordinator",
            _CHECK_URL,
            printable(self.reason),
        )


@dataclass(frozen=True, slots=True)
class SocketClosed:
    """The websocket ended, with this close code and reason."""

    code: int
    reason: str = ""

    @property
    def replaced(self) -> bool:
        """Whether another connection of the same machine took this one's place."""
        return self.code == CLOSE_NORMAL and self.reason == REPLACED_REASON

    def problem(self) -> Problem:
        """What to tell the owner."""
        if self.replaced:
            return Problem(
                "Another connection from this machine took over the session",
                "let only one provider run here: stop the other one, or `darkbloom stop` this one",
                "the coordinator keeps one connection per machine, the newest",
            )
        how = "no close frame" if self.code == CLOSE_ABNORMAL else f"close code {self.code}"
        why = ", ".join(part for part in (how, printable(self.reason)) if part)
        if self.code in {CLOSE_UNAUTHORIZED, CLOSE_FORBIDDEN}:
            return Problem("The coordinator refuses this machine", _LINK_AGAIN, why)
        return Problem("The connection to the coordinator ended", _BY_ITSELF, why)


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """Pings were not answered in time: the line is dead though nobody hung up."""

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem("The line to the coordinator went dead", _BY_ITSELF, "pings unanswered")


@dataclass(frozen=True, slots=True)
class PeerOverLimit:
    """The coordinator sent a message over the size limit."""

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem("The coordinator sent a message over the size limit", _BY_ITSELF)


@dataclass(frozen=True, slots=True)
class PeerStalled:
    """The coordinator reads so slowly that even control frames pile up."""

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem("The coordinator stopped reading what is sent to it", _BY_ITSELF)


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """The registration was not followed by a challenge within `waited_s` seconds."""

    waited_s: float

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "The coordinator did not accept the registration",
            "it tries again by itself; if it stays so, update darkbloom",
            f"no challenge came within {self.waited_s:.0f} s; a coordinator drops a registration "
            "that it cannot read without a word",
        )


@dataclass(frozen=True, slots=True)
class ChallengesStopped:
    """No challenge for `silent_s` seconds, so nothing is routed here any more."""

    silent_s: float

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "The coordinator stopped checking this machine, so it got no work",
            _BY_ITSELF,
            f"no challenge for {self.silent_s / 60:.0f} min",
        )


@dataclass(frozen=True, slots=True)
class HeartbeatOverdue:
    """The last heartbeat left `silent_s` seconds ago: sleep, or a stuck line."""

    silent_s: float

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "This machine was asleep or its line was stuck",
            _BY_ITSELF,
            f"the last heartbeat left {self.silent_s:.0f} s ago, too long for the coordinator",
        )


@dataclass(frozen=True, slots=True)
class InternalFault:
    """A fault of this program, named by the type of its exception. The log has the details."""

    kind: str

    def problem(self) -> Problem:
        """What to tell the owner."""
        return Problem(
            "darkbloom made a mistake of its own on this connection",
            "it reconnects by itself; please report the log",
            self.kind,
        )


Failure = (
    Unreachable
    | UntrustedCertificate
    | HandshakeTimeout
    | HttpRejected
    | NotWebSocket
    | SocketClosed
    | PeerSilent
    | PeerOverLimit
    | PeerStalled
    | NotAccepted
    | ChallengesStopped
    | HeartbeatOverdue
    | InternalFault
)
"""Every way in which a connection ends or does not come about."""


class LinkDownError(Exception):
    """Carries a failure from the border of the websocket library to whoever holds the link."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.problem().what)
        self.failure = failure
