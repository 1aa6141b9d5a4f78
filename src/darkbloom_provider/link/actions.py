"""What a session wants done, as frozen values. The shell carries them out in order."""

from __future__ import annotations

from dataclasses import dataclass

from darkbloom_provider.link.failure import Failure
from darkbloom_provider.link.state import Problem
from darkbloom_provider.protocol.messages import AttestationChallenge, InferenceRequest


@dataclass(frozen=True, slots=True)
class SendRegister:
    """Send `register` with the facts of now."""

    reason: str


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send `heartbeat` with the facts of now, and report `HeartbeatSent` when it is written."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a challenge at once, ahead of every job's frames."""

    challenge: AttestationChallenge


@dataclass(frozen=True, slots=True)
class Accepted:
    """The coordinator has taken the registration: this machine can get work now."""


@dataclass(frozen=True, slots=True)
class StartJob:
    """Hand a request to the jobs."""

    request: InferenceRequest


@dataclass(frozen=True, slots=True)
class RefuseJob:
    """Answer a request with `inference_error` at once."""

    request_id: str
    message: str
    status_code: int


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Stop a job; nothing more is sent for it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class AbortJobs:
    """Every job of this session is lost, with the cause."""

    cause: str


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Send what is queued, then hang up with 1000 for good."""


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Hang up and dial again as the reconnect policy says."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class ShowProblem:
    """Tell the owner, with what to do."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class ClearProblem:
    """What `ShowProblem` said is over."""


@dataclass(frozen=True, slots=True)
class Report:
    """A line for the log about something odd that was ignored."""

    what: str
    detail: str


Action = (
    SendRegister
    | SendHeartbeat
    | Answer
    | Accepted
    | StartJob
    | RefuseJob
    | CancelJob
    | AbortJobs
    | CloseConnection
    | Reconnect
    | ShowProblem
    | ClearProblem
    | Report
)
