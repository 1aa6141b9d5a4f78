"""Token buckets: how often one account, one address or one e-mail address may ask.

Source: the network's rate limits (one bucket a key, made at the first use; 429 with `Retry-After`).
Buckets live in memory: a restart fills them, which helps an attacker by one burst.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Final, Literal

from darkbloom_provider.coordinator.rest.replies import ApiError
from darkbloom_provider.coordinator.settings import Rate, Rates

MAX_KEYS: Final = 100_000
"""Buckets remembered in each tier. Beyond it the one unused for longest is forgotten."""
MAX_RETRY_AFTER_S: Final = 60

Tier = Literal[
    "consumer",
    "financial",
    "sign_in",
    "password",
    "password_anywhere",
    "device",
    "telemetry",
    "telemetry_anonymous",
]
"""Which buckets an endpoint draws from; each tier has its own."""


class TokenBuckets:
    """One tier: a bucket for each key, all of the same size and speed."""

    def __init__(
        self, rate: Rate, monotonic: Callable[[], float], *, max_keys: int = MAX_KEYS
    ) -> None:
        self._rate = rate
        self._monotonic = monotonic
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, count: int = 1) -> float:
        """Take tokens. 0 if there were enough, else the seconds until there will be."""
        if self._rate.per_second <= 0:
            return 0.0
        tokens = self._level(key)
        if tokens < count:
            self._keep(key, tokens)
            return (count - tokens) / self._rate.per_second
        self._keep(key, tokens - count)
        return 0.0

    def give_back(self, key: str) -> None:
        """Return a token that was taken for something that does not count."""
        if key in self._buckets:
            self._keep(key, min(self._level(key) + 1, self._rate.burst))

    def _level(self, key: str) -> float:
        now = self._monotonic()
        tokens, at = self._buckets.get(key, (float(self._rate.burst), now))
        return min(tokens + (now - at) * self._rate.per_second, self._rate.burst)

    def _keep(self, key: str, tokens: float) -> None:
        self._buckets[key] = (tokens, self._monotonic())
        self._buckets.move_to_end(key)
        # The oldest first: a bucket that is full again says no more than one that is absent.
        while self._buckets:
            oldest = next(iter(self._buckets))
            if len(self._buckets) <= self._max_keys and self._level(oldest) < self._rate.burst:
                return
            del self._buckets[oldest]


class RateLimiter:
    """Every tier of a coordinator."""

    def __init__(
        self, rates: Rates, *, monotonic: Callable[[], float], now: Callable[[], datetime]
    ) -> None:
        self._now = now
        self._tiers: dict[Tier, TokenBuckets] = {
            "consumer": TokenBuckets(rates.consumer, monotonic),
            "financial": TokenBuckets(rates.financial, monotonic),
            "sign_in": TokenBuckets(rates.sign_in, monotonic),
            "password": TokenBuckets(rates.password, monotonic),
            "password_anywhere": TokenBuckets(rates.password_anywhere, monotonic),
            "device": TokenBuckets(rates.device, monotonic),
            "telemetry": TokenBuckets(rates.telemetry, monotonic),
            "telemetry_anonymous": TokenBuckets(rates.telemetry_anonymous, monotonic),
        }

    def admit(self, tier: Tier, key: str) -> None:
        """Count one request.

        Raises:
            ApiError: 429 `rate_limit_exceeded`, with the time to wait.
        """
        wait = self._tiers[tier].take(key)
        if wait > 0:
            seconds = min(max(math.ceil(wait), 1), MAX_RETRY_AFTER_S)
            reset = math.ceil((self._now() + timedelta(seconds=seconds)).timestamp())
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                f"too many requests; try again in {seconds} s",
                {"Retry-After": str(seconds), "X-RateLimit-Reset": str(reset)},
            )

    def has_room(self, tier: Tier, key: str, count: int) -> bool:
        """Count several at once, or none of them if there is no room for all."""
        return self._tiers[tier].take(key, count) == 0

    def give_back(self, tier: Tier, key: str) -> None:
        """Uncount a request that turned out to be harmless."""
        self._tiers[tier].give_back(key)


def address_key(host: str | None) -> str:
    """What an address is counted under: itself, or for IPv6 its /64, which is one customer's.

    >>> address_key("2001:db8::1") == address_key("2001:db8::2"), address_key("192.0.2.1")
    (True, '192.0.2.1')
    """
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
