"""What every endpoint of the coordinator is given. Built once, by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from darkbloom_provider.coordinator.accounts.passwords import Passwords
from darkbloom_provider.coordinator.accounts.people import Identity
from darkbloom_provider.coordinator.deposits.desk import DepositDesk
from darkbloom_provider.coordinator.inference.sealing import SealingKey
from darkbloom_provider.coordinator.metrics import Metrics
from darkbloom_provider.coordinator.offer.live import Offer
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.sandbox import SandboxSetup
from darkbloom_provider.coordinator.rest.rate_limits import RateLimiter
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.models.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Services:
    """The coordinator's parts, as the endpoints see them. Frozen: nobody swaps one at run time."""

    db: Database
    identity: Identity
    """Signs and checks session tokens, and knows the admin key."""
    sealing: SealingKey | None
    """Opens sealed requests; None if this coordinator takes none."""
    clock: Callable[[], datetime]
    """The time, aware and in UTC."""
    monotonic: Callable[[], float]
    """Seconds that never jump, for what is kept for a while."""
    random_hex: Callable[[int], str]
    """So many random bytes as lower-case hex; unpredictable (`secrets.token_hex`)."""
    new_id: Callable[[], str]
    """A fresh UUID as text, for accounts."""
    metrics: Metrics
    passwords: Passwords
    limiter: RateLimiter
    offer: Offer
    """The models and prices, which the operator may change at any moment."""
    policy: Policy
    payouts: PayoutDesk | None
    """Takes withdrawals to the bank; None if this coordinator pays nobody out."""
    deposits: DepositDesk | None
    """Sells credit; None if nobody can buy any."""
    sandbox_setup: SandboxSetup
    console_url: str | None
    behind_proxy: bool
    """Whether a caller from this machine may be a proxy, for anybody."""
    """Where people approve a machine. Absent: the address the request came to."""
    connected_providers: Callable[[], int]
    """Sessions that are connected now, routable or not."""
    on_token_revoked: Callable[[str], None]
    """Called after a device token was revoked, with its SHA-256 in hex: unlink live sessions."""

    @property
    def catalogue(self) -> Catalogue:
        """The models with their prices, as they are now."""
        return self.offer.catalogue
