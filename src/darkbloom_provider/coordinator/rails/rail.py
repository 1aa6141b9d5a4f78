"""What all rails have in common: the outside parties that carry money to us and from us.

A call to one can end in three ways, and the difference is money: it did it, it refused, or nobody
knows. What a rail tells by itself comes at least once and in any order.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, insert, select

from darkbloom_provider.coordinator.store.schema import rail_events
from darkbloom_provider.errors import DarkbloomError

MICRO_PER_CENT: Final = 10_000
MAX_EVENT_BYTES: Final = 1024 * 1024


class RailRefusedError(DarkbloomError):
    """The rail said no, and did nothing. `code` is its own short name for the reason."""

    def __init__(self, what: str, *, code: str = "refused") -> None:
        super().__init__(what)
        self.code = code


class RailUnknownError(DarkbloomError):
    """The rail did not answer, or not in time. What was asked for may have happened."""


class BadEventError(DarkbloomError):
    """A webhook that the rail did not sign, or signed too long ago."""


def first_hearing(
    connection: Connection, rail: str, event_id: str, event_type: str, *, now: datetime
) -> bool:
    """Whether this event of the rail was not heard before; it is from now on."""
    seen = select(rail_events.c.event_id).where(
        rail_events.c.rail == rail, rail_events.c.event_id == event_id
    )
    if connection.execute(seen).first() is not None:
        return False
    connection.execute(
        insert(rail_events).values(rail=rail, event_id=event_id, type=event_type, received_at=now)
    )
    return True
