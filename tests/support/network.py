"""A coordinator on loopback, a consumer with credit, and books that must be right at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.server import RunningCoordinator, running_coordinator
from darkbloom_provider.coordinator.settings import (
    Limits,
    Payouts,
    Policy,
    Rates,
    Settings,
    Timing,
)
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store.schema import jobs
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue
from support.desk import NO_RATES
from support.scripted_provider import MODEL

CREDIT = 5_000_000
QUICK = Timing(queue_wait=5, accept=5, idle=5, stop_grace=2)
PATIENT = Timing(queue_wait=0.2, accept=60, idle=60, stop_grace=2)
"""For real providers on a busy machine: they may be slow; for one that is gone nobody waits."""
SLOW = replace(PATIENT, queue_wait=60)
"""The same where a request may have to wait for its provider."""
CHAT = "/v1/chat/completions"


@dataclass
class Network:
    """A running coordinator and one consumer."""

    coordinator: RunningCoordinator
    http: httpx.AsyncClient
    account: str

    @property
    def ws_url(self) -> str:
        return self.coordinator.ws_url

    async def ask(self, **body: Any) -> httpx.Response:
        """One chat request, not streamed unless told."""
        return await self.http.post(CHAT, json=chat(**body))

    async def stream(self, **body: Any) -> tuple[httpx.Response, list[str]]:
        """One streamed chat request: the response and its `data:` payloads."""
        async with self.http.stream("POST", CHAT, json=chat(stream=True, **body)) as response:
            text = (await response.aread()).decode()
        return response, events(text)

    async def balance(self, account: str | None = None) -> int:
        held = await self.coordinator.operator.balance(account or self.account)
        return held.balance

    async def spent(self) -> int:
        return CREDIT - await self.balance()

    async def job_states(self) -> list[str]:
        query = select(jobs.c.state).order_by(jobs.c.created_at)
        states = await self.coordinator.services.db.read(lambda c: c.execute(query).scalars().all())
        return list(states)

    def session(self) -> Secret:
        """The consumer, signed in."""
        return self.coordinator.operator.session_token(self.account)

    async def idle(self) -> None:
        """Wait until every request's books are closed."""
        async with asyncio.timeout(10):
            await self.coordinator.hub.requests.none.wait()

    async def link(self) -> tuple[str, str]:
        """An owner's device token, through the real flow, and the account it belongs to."""
        operator = self.coordinator.operator
        owner = await operator.create_user("owner@example.org")
        code = (await self.http.post("/v1/device/code")).json()
        session = operator.session_token(owner).reveal()
        approved = await self.http.post(
            "/v1/device/approve",
            json={"user_code": code["user_code"]},
            headers={"Authorization": f"Bearer {session}"},
        )
        assert approved.status_code == 200
        token = await self.http.post("/v1/device/token", json={"device_code": code["device_code"]})
        return token.json()["token"], owner

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the network run until something has happened in it."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the state of another room has no event
                await asyncio.sleep(0.001)

    def verified(self) -> int:
        """How many providers have passed a challenge."""
        return sum(s.verified_at is not None for s in self.coordinator.hub.registry)


@contextlib.asynccontextmanager
async def network(
    directory: Path,
    *,
    timing: Timing = QUICK,
    policy: Policy | None = None,
    limits: Limits | None = None,
    rates: Rates | None = None,
    credit: int = CREDIT,
    admin_key: str | None = None,
    release_key: str | None = None,
    database: str | None = None,
    payouts: Payouts | None = None,
    sources: Sources | None = None,
    proxies: tuple[str, ...] = (),
) -> AsyncIterator[Network]:
    """A coordinator with one consumer; at the end its books are audited."""
    settings = Settings(
        state_directory=directory,
        port=0,
        database=database,
        timing=timing,
        policy=policy or Policy(),
        limits=limits or Limits(),
        rates=rates or NO_RATES,
        admin_key=None if admin_key is None else Secret(admin_key),
        release_key=None if release_key is None else Secret(release_key),
        payouts=payouts or Payouts(),
        proxies=proxies,
    )
    async with running_coordinator(settings, Catalogue.builtin(), sources) as coordinator:
        operator = coordinator.operator
        account, new = await operator.find_or_create_user("consumer@example.org")
        if new:
            await operator.credit(account, credit)
        key = await operator.create_api_key(account)
        async with httpx.AsyncClient(
            base_url=coordinator.base_url,
            headers={"Authorization": f"Bearer {key.reveal()}"},
            timeout=20 + timing.idle,
        ) as http:
            yield Network(coordinator, http, account)
        assert await coordinator.services.db.read(audit) == []


def chat(content: str = "hello", **body: Any) -> dict[str, Any]:
    """A chat request. Reserves 830 micro-USD: 800 for the answer and 30 for the prompt."""
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "max_tokens": 4000} | body


def events(text: str) -> list[str]:
    """The `data:` payloads of an event stream."""
    lines = text.split("\n\n")
    return [line.removeprefix("data: ") for line in lines if line]


def said(payloads: list[str]) -> str:
    """The text of a streamed answer."""
    pieces = [json.loads(p) for p in payloads if p != "[DONE]"]
    return "".join(c["delta"].get("content", "") for p in pieces for c in p["choices"])
