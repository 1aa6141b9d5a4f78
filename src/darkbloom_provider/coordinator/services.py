"""What every endpoint of the coordinator is given. Built once, by the composition root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from darkbloom_provider.coordinator.accounts import Identity
from darkbloom_provider.coordinator.database import Database
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.protocol.money import Price


class ListedModel(Protocol):
    """One model of the catalogue, as `GET /v1/models/catalog` shows it."""

    @property
    def id(self) -> str: ...  # noqa: D102 - the names are the protocol's
    @property
    def s3_name(self) -> str: ...  # noqa: D102
    @property
    def display_name(self) -> str: ...  # noqa: D102
    @property
    def model_type(self) -> str: ...  # noqa: D102
    @property
    def size_gb(self) -> float: ...  # noqa: D102
    @property
    def architecture(self) -> str: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def min_ram_gb(self) -> int: ...  # noqa: D102
    @property
    def active(self) -> bool: ...  # noqa: D102
    @property
    def weight_hash(self) -> str: ...  # noqa: D102


class PriceList(Protocol):
    """The models on offer and what they cost. `models.catalogue.Catalogue` is one."""

    @property
    def entries(self) -> Sequence[ListedModel]:
        """Every listed model."""

    def price(self, model_id: str, /) -> Price:
        """What a model costs; unlisted ones have the default price."""


@dataclass(frozen=True, slots=True)
class Services:
    """The coordinator's parts, as the endpoints see them. Frozen: nobody swaps one at run time."""

    db: Database
    identity: Identity
    """Signs and checks session tokens, and knows the admin key."""
    clock: Callable[[], datetime]
    """The time, aware and in UTC."""
    random_hex: Callable[[int], str]
    """So many random bytes as lower-case hex; unpredictable (`secrets.token_hex`)."""
    new_id: Callable[[], str]
    """A fresh UUID as text, for accounts."""
    catalogue: PriceList
    policy: Policy
    console_url: str | None
    """Where people approve a machine. Absent: the address the request came to."""
    connected_providers: Callable[[], int]
    """Sessions that are connected now, routable or not."""
    on_token_revoked: Callable[[str], None]
    """Called after a device token was revoked, with its SHA-256 in hex: unlink live sessions."""
