"""Machines that a coordinator takes for connected, without a socket."""

from __future__ import annotations

import itertools
from datetime import datetime
from typing import Any

from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import CoordinatorMessage
from support.scripted_provider import registration

_NUMBERS = itertools.count(1)


class Silence:
    """The wire of a machine that hears nothing."""

    async def send(self, _message: CoordinatorMessage, _patience: float) -> bool:
        return True

    async def close(self, _code: int, _reason: str) -> None:
        pass


def connected(account: str | None, *, now: datetime, monotonic: float, **changes: Any) -> Session:
    """A machine of this account that has passed its checks; `changes` replace its fields."""
    register = registration(KeyPair.generate())
    whole: dict[str, Any] = {
        "id": f"connected-{next(_NUMBERS)}",
        "wire": Silence(),
        "version": register.version,
        "backend": register.backend,
        "hardware": register.hardware,
        "models": register.models,
        "public_key": register.public_key,
        "encrypted_chunks": register.encrypted_response_chunks,
        "privacy": register.privacy_capabilities,
        "decode_tps": 30.0,
        "prefill_tps": 300.0,
        "registered_at": now,
        "heartbeat_at": monotonic,
        "account_id": account,
        "machine_id": register.machine_id,
        "verified_at": monotonic,
        "sip_verified": True,
    }
    return Session(**{**whole, **changes})
