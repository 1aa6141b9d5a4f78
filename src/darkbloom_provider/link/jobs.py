"""What the link needs from the program around it: facts to tell and a place for the work."""

from __future__ import annotations

from typing import Protocol

from darkbloom_provider.link.reply import Reply
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Heartbeat,
    InferenceRequest,
    Register,
)


class Facts(Protocol):
    """What this machine says about itself. Called on the event loop: cheap, never blocking."""

    def registration(self) -> tuple[Register, str | None]:
        """The registration of now, and the signed attestation as raw JSON text if there is one."""
        ...

    def heartbeat(self) -> Heartbeat:
        """The heartbeat of now."""
        ...

    def answer(self, challenge: AttestationChallenge) -> AttestationResponse:
        """The signed answer to a challenge."""
        ...


class JobSink(Protocol):
    """Where requests go. Called on the event loop: each call returns at once."""

    def start(self, request: InferenceRequest, reply: Reply) -> None:
        """Begin a request. Its answer goes into `reply`, which must be ended in every case."""
        ...

    def cancel(self, request_id: str) -> None:
        """Nobody listens to this request any more: stop it and free its memory."""
        ...

    def abort_all(self, cause: str) -> None:
        """Every request that runs is lost, for this cause."""
        ...
