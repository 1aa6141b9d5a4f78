"""Where the coordinator takes time, chance and identities from. Tests bring their own."""

from __future__ import annotations

import random
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Sources:
    """Time, randomness and ids."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    """The time of day, aware and in UTC."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never jump."""
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())
    entropy: Callable[[int], bytes] = secrets.token_bytes
    """Unpredictable bytes, for nonces."""
    random_hex: Callable[[int], str] = secrets.token_hex
    """So many unpredictable bytes as hex, for keys and tokens."""
    chance: random.Random = field(default_factory=random.Random)
    """Breaks ties between equally good providers."""
