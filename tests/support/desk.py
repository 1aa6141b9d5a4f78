"""The coordinator's money and account endpoints over HTTP, without a socket."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
from argon2 import PasswordHasher
from sqlalchemy import Connection

from darkbloom_provider.coordinator.accounts import people
from darkbloom_provider.coordinator.accounts.passwords import Passwords
from darkbloom_provider.coordinator.accounts.people import Identity
from darkbloom_provider.coordinator.accounts.session_tokens import SessionKeys
from darkbloom_provider.coordinator.app import application, desk_endpoints
from darkbloom_provider.coordinator.deposits.desk import DepositDesk
from darkbloom_provider.coordinator.deposits.rail import CheckoutRail
from darkbloom_provider.coordinator.deposits.sandbox import SandboxCheckout
from darkbloom_provider.coordinator.metrics import Metrics
from darkbloom_provider.coordinator.offer.live import Offer
from darkbloom_provider.coordinator.payouts.desk import PayoutDesk
from darkbloom_provider.coordinator.payouts.rail import PayoutRail
from darkbloom_provider.coordinator.payouts.sandbox import SandboxRail, SandboxSetup
from darkbloom_provider.coordinator.rest.rate_limits import RateLimiter
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import UNLIMITED, Policy, Rates
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue
from support.books import Clock, Shop

T = TypeVar("T")
NO_RATES = Rates(*[UNLIMITED] * len(fields(Rates)))
QUICK_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
ADMIN_KEY = "the-operators-key"
RELEASE_KEY = "the-builders-key"
BASE = "http://coordinator.test:8080"


def counted_hex(prefix: str = "") -> Callable[[int], str]:
    """Hex that never repeats and is the same in every run."""
    counter = itertools.count()
    return lambda size: hashlib.shake_256(f"{prefix}{next(counter)}".encode()).hexdigest(size)


@dataclass(slots=True)
class Desk:
    """One coordinator's front desk, a client in front of it, and a clock to turn."""

    services: Services
    clock: Clock
    client: httpx.AsyncClient
    revoked: list[str] = field(default_factory=list)
    sessions: Iterator[int] = field(default_factory=itertools.count)

    async def books(self, act: Callable[[Shop], T]) -> T:
        """Do something in the books, in one transaction."""
        policy, clock = self.services.policy, self.clock
        return await self.services.db.write(lambda c: act(Shop(c, policy, clock=clock)))

    async def write(self, act: Callable[[Connection], T]) -> T:
        return await self.services.db.write(act)

    async def user(self, account_id: str) -> None:
        """Make a person."""
        now = self.clock()
        await self.write(
            lambda c: people.create_user(
                c, account_id=account_id, email=f"{account_id}@example.org", now=now
            )
        )

    def session(self, account_id: str, lifetime: timedelta = timedelta(hours=1)) -> dict[str, str]:
        """The headers of somebody signed in."""
        session_id = f"session-{next(self.sessions)}"
        token = self.services.identity.sessions.issue(
            account_id, session_id=session_id, now=self.clock(), lifetime=lifetime
        )
        return bearer(token.reveal())

    async def api_key(self, account_id: str) -> dict[str, str]:
        """The headers of an API key's holder."""
        reply = await self.client.post("/v1/auth/keys", headers=self.session(account_id))
        return bearer(reply.json()["api_key"])

    async def device_token(self, account_id: str) -> dict[str, str]:
        """The headers of a machine linked to this account, by the real flow."""
        code = (await self.client.post("/v1/device/code")).json()
        await self.client.post(
            "/v1/device/approve",
            headers=self.session(account_id),
            json={"user_code": code["user_code"]},
        )
        reply = await self.client.post(
            "/v1/device/token", json={"device_code": code["device_code"]}
        )
        return bearer(reply.json()["token"])

    async def get(self, path: str, **options: Any) -> Any:
        """The JSON of a reply that must be good."""
        reply = await self.client.get(path, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def error_of(reply: httpx.Response) -> tuple[int, str]:
    """Status and type of an error reply, whose body must be exactly as agreed."""
    document = reply.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"type", "message"}
    assert document["error"]["message"]
    return reply.status_code, document["error"]["type"]


@contextlib.asynccontextmanager
async def front_desk(
    directory: Path,
    *,
    where: Path | str | None = None,
    rates: Rates | None = None,
    rail: Callable[[Clock], PayoutRail] | None = None,
    sell: Callable[[Clock], CheckoutRail] | None = None,
    **changes: Any,
) -> AsyncIterator[Desk]:
    """A desk over a fresh database, in this directory unless told `where`.

    Payouts go to the sandbox unless `rail` makes another one, and nobody is limited unless `rates`
    say so; credit is sold over `sell`. `changes` replace fields of `Services`.
    """
    clock = Clock()
    database = await Database.open(where or directory / "ledger.sqlite3", clock=clock)
    revoked: list[str] = []
    ids = itertools.count(1)
    checkout = sell(clock) if sell else SandboxCheckout(base_url=BASE)
    chosen = rail(clock) if rail else SandboxRail(clock, base_url=BASE)
    services = replace(
        Services(
            db=database,
            identity=Identity(SessionKeys.generate(), Secret(ADMIN_KEY), Secret(RELEASE_KEY)),
            sealing=None,
            clock=clock,
            monotonic=clock.monotonic,
            random_hex=counted_hex(),
            new_id=lambda: f"id-{next(ids)}",
            payouts=PayoutDesk(database, chosen, clock),
            deposits=DepositDesk(database, checkout, clock),
            sandbox_setup=SandboxSetup(counted_hex("setup")),
            metrics=Metrics(),
            passwords=Passwords(QUICK_HASHER),
            limiter=RateLimiter(rates or NO_RATES, monotonic=clock.monotonic, now=clock),
            offer=Offer(database, Catalogue.builtin()),
            policy=Policy(),
            console_url=None,
            behind_proxy=False,
            connected_providers=lambda: 0,
            on_token_revoked=revoked.append,
        ),
        **changes,
    )
    app = application(desk_endpoints(services), services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            yield Desk(services, clock, client, revoked)
    finally:
        await chosen.close()
        await checkout.close()
        await database.close()
