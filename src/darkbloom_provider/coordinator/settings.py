"""What an operator can set on the embedded coordinator, and the network's own figures as defaults.

Every duration is here, so that a test can shorten it and nothing waits on a constant.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret

DEFAULT_PORT = 8080
MIN_ADMIN_KEY_CHARACTERS = 16

TrustLevel = Literal["none", "self_signed", "hardware"]
"""How sure the coordinator is that a provider is the machine it says it is."""

SignUp = Literal["closed", "invite", "open"]
"""Nobody, whoever holds an invite code, or everybody."""

TRUST_RANK: dict[TrustLevel, int] = {"none": 0, "self_signed": 1, "hardware": 2}


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's rules about money and about who may serve."""

    fee_percent: int = 0
    """The platform's share of every job, 0-100; owners get all of it by default."""
    referral_percent: int = 20
    """A referrer's share of the platform's fee, 1-50."""
    personal_prices: bool = False
    """Whether who serves a job may ask for less than everybody's price (`PUT /v1/pricing`)."""
    minimum_charge_micro_usd: int = 0
    """The least that a request costs."""
    min_trust: TrustLevel = "none"
    """Providers below this level get no work."""
    max_requests: int | None = None
    """Requests that any one provider may have at once; None follows its memory, as the network."""
    sign_up: SignUp = "invite"
    """Who may open an account without the operator."""
    accepted_python_hashes: frozenset[str] = frozenset()
    """SHA-256 hex of accepted interpreters. Empty: not checked."""
    accepted_runtime_hashes: frozenset[str] = frozenset()
    """SHA-256 hex of accepted runtimes. Empty: not checked."""
    accepted_template_hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 hex of each chat template by name: just these and no other. Empty: not checked."""
    accepted_binary_hashes: frozenset[str] = frozenset()
    """SHA-256 hex of accepted programs, checked where one is reported. Empty: not checked."""
    min_version: str | None = None
    """Providers of an older version get no work. Dotted numbers."""

    def __post_init__(self) -> None:
        if not 0 <= self.fee_percent <= 100:  # noqa: PLR2004 - a percentage
            raise UsageError(
                f"A platform fee of {self.fee_percent} % makes no sense",
                next_step="give a whole number from 0 to 100",
            )
        if not 1 <= self.referral_percent <= 50:  # noqa: PLR2004 - as documented
            raise UsageError(
                f"A referral share of {self.referral_percent} % is out of range",
                next_step="give a whole number from 1 to 50",
            )
        if self.max_requests is not None and self.max_requests < 1:
            raise UsageError(
                "Providers that may have no request can serve none",
                next_step="give a maximum of 1 or more, or none",
            )
        if self.minimum_charge_micro_usd < 0:
            raise UsageError("The minimum charge is negative", next_step="give 0 or more micro-USD")


@dataclass(frozen=True, slots=True)
class Timing:
    """Every wait of the coordinator, in seconds. The defaults are the network's own figures."""

    accept: float = 10
    """Dispatch to first chunk or acceptance; then the next provider is tried."""
    idle: float = 600
    """Acceptance to first chunk, and from each chunk to the next."""
    queue_wait: float = 120
    """How long a request waits for a provider to come free."""
    challenge_interval: float = 300
    challenge_answer: float = 30
    challenge_fresh: float = 360
    """A passed challenge makes a provider routable for this long."""
    eviction_age: float = 90
    """A provider without a heartbeat for longer than this is dropped from the registry."""
    eviction_scan: float = 30
    write_challenge: float = 5
    write_cancel: float = 2
    stop_grace: float = 5
    """How long open connections may take to end when the coordinator stops."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of the coordinator."""

    attempts: int = 3
    """Providers tried for one request before its first chunk."""
    queue_per_model: int = 10
    job_buffer_bytes: int = 32 * 2**20
    """Decrypted output held for one slow consumer; beyond it the request ends with an error."""
    request_body_bytes: int = 16 * 2**20
    challenge_failures: int = 3
    """Failed challenges in a row after which a provider is untrusted."""
    request_body_seconds: float = 10
    """A consumer has this long to deliver the whole request."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: what it holds, and how fast it fills. A rate of 0 sets no limit."""

    per_second: float
    burst: int


UNLIMITED = Rate(0, 1)


@dataclass(frozen=True, slots=True)
class Rates:
    """How often one caller may ask. The first two are the network's own figures."""

    consumer: Rate = Rate(1.0, 10)
    """Inference, by account."""
    financial: Rate = Rate(0.2, 3)
    """Keys, codes, deposits and withdrawals, by account."""
    sign_in: Rate = Rate(1 / 6, 20)
    """Sign-ins and sign-ups, by address."""
    password: Rate = Rate(1 / 60, 10)
    """Wrong passwords for one e-mail address from one address, whether or not it has an account."""
    password_anywhere: Rate = Rate(1 / 30, 100)
    """Wrong passwords for one e-mail address from everywhere: wide, for a stranger who uses it up
    keeps the owner out."""
    device: Rate = Rate(1.0, 30)
    """Steps of the device login by machines, by address."""
    telemetry: Rate = Rate(100 / 60, 200)
    """Events that clients report, by account."""
    telemetry_anonymous: Rate = Rate(10 / 60, 30)
    """The same by everybody who does not say who they are, together."""


RailName = Literal["sandbox", "stripe", "off"]


@dataclass(frozen=True, slots=True)
class Payouts:
    """How money leaves the coordinator, and how it comes."""

    rail: RailName = "sandbox"
    """`sandbox` moves no money and says so everywhere."""
    sandbox_delay: timedelta = timedelta(hours=24)
    stripe_secret_key: Secret | None = None
    stripe_webhook_secret: Secret | None = None
    """Of the endpoint that hears Connect events."""
    stripe_checkout_secret: Secret | None = None
    """Of the endpoint that hears of payments for credit."""
    deposits: bool = True
    """Whether credit can be bought, over the same rail."""
    stripe_api_base: str | None = None
    """Instead of Stripe's own, for tests."""

    def __post_init__(self) -> None:
        if self.rail == "stripe" and self.stripe_secret_key is None:
            raise UsageError(
                "Payouts through Stripe need its secret key",
                why="none is in the environment, in the data directory or in the keyring",
                next_step="set DARKBLOOM_STRIPE_SECRET_KEY, or leave --payouts at sandbox",
            )


@dataclass(frozen=True, slots=True)
class Settings:
    """One coordinator. Listens on loopback unless the operator has set an admin key.

    For other machines it must also have an administrator, which its database tells when it opens.
    """

    state_directory: Path
    """Holds the database and the keys; made 0700 if it does not exist."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 lets the system choose a free one."""
    database: str | None = field(default=None, repr=False)
    """A database URL instead of the file in the state directory. May hold a password."""
    admin_key: Secret | None = None
    release_key: Secret | None = None
    """Registers releases and nothing else, for whoever builds them."""
    console_url: str | None = None
    """Where people approve a machine; the coordinator's own address if absent."""
    proxies: tuple[str, ...] = ()
    """Addresses or networks of reverse proxies, which are believed about who calls."""
    sealed_requests: bool = True
    """Whether consumers may seal requests for the coordinator, whose key the directory holds."""
    policy: Policy = field(default_factory=Policy)
    payouts: Payouts = field(default_factory=Payouts)
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        if self.admin_key is None and self.is_public:
            raise UsageError(
                f"{self.opened_by} opens the coordinator to other machines",
                why="without an admin key nobody could administer it safely",
                next_step="type: darkbloom coordinator init --admin you@example.org; or name the "
                f"key with --admin-key-file FILE; or leave {self._opening} out",
            )

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach it: by its address, or through a proxy."""
        return bool(self.proxies) or not is_loopback(self.host)

    @property
    def opened_by(self) -> str:
        """What lets them, for a sentence."""
        return "A proxy" if is_loopback(self.host) else f"Listening on {self.host}"

    @property
    def _opening(self) -> str:
        return "--proxy" if is_loopback(self.host) else "--host"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
