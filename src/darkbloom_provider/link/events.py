"""What can happen to a session, as frozen values. The shell reports them to `session.Session`."""

from __future__ import annotations

from dataclasses import dataclass

from darkbloom_provider.protocol.codec import FrameError
from darkbloom_provider.protocol.messages import CoordinatorMessage


@dataclass(frozen=True, slots=True)
class Connected:
    """The websocket is open. First event of a session."""


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """The coordinator said something."""

    message: CoordinatorMessage


@dataclass(frozen=True, slots=True)
class FrameUndecodable:
    """The coordinator sent something that is not a message of this protocol."""

    error: FrameError


@dataclass(frozen=True, slots=True)
class HeartbeatSent:
    """The heartbeat asked for last has been written to the socket."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job's last frame has been written, or the job gave up."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Reregister:
    """What was registered has changed (models, token): register again when no job runs."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more work, finish what runs until `deadline` (of the session's clock), hang up."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Closed:
    """The websocket is gone. Last event of a session."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Comes about every second."""


Event = (
    Connected
    | FrameReceived
    | FrameUndecodable
    | HeartbeatSent
    | JobEnded
    | Reregister
    | Drain
    | Closed
    | Tick
)
