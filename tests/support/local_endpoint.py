"""The local endpoint on a free port of loopback, before an engine that says what it is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from darkbloom_provider.daemon.answers import Answers
from darkbloom_provider.daemon.local_api import LocalApi
from darkbloom_provider.daemon.local_server import LocalServer, address, listening
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import SERVED, Offer
from darkbloom_provider.logs import Secret
from support.daemon_parts import MODEL, NOW, FakeEngine, nothing_to_prepare

KEY = "darkbloom-local-" + "0" * 64


@dataclass
class Endpoint:
    """A running endpoint and a client that holds its key."""

    engine: FakeEngine
    api: LocalApi
    server: LocalServer
    url: str
    http: httpx.AsyncClient

    async def until_idle(self) -> None:
        """Wait until nothing is being served."""
        async with asyncio.timeout(10):
            await self.api.idle()


@asynccontextmanager
async def local_endpoint(
    engine: FakeEngine | None = None,
    *,
    served: frozenset[str] = SERVED,
    max_jobs: int = 8,
) -> AsyncIterator[Endpoint]:
    """Serve while the block runs."""
    engine = engine or FakeEngine()
    ids = itertools.count(1)
    tally = Tally()
    offer = Offer(models=lambda: (MODEL,), prepare=nothing_to_prepare, served=served)
    with listening(0) as listener:
        url = address(listener)
        async with asyncio.TaskGroup() as tasks:
            api = LocalApi(
                Answers(engine, offer, tally, tasks, lambda: NOW),
                tally,
                Secret(KEY),
                models=offer.models,
                new_id=lambda: f"request-{next(ids)}",
                tasks=tasks,
                created=int(NOW.timestamp()),
                now=lambda: NOW,
                max_jobs=max_jobs,
            )
            server = LocalServer(api, listener)
            serving = tasks.create_task(server.run())
            headers = {"Authorization": f"Bearer {KEY}"}
            try:
                async with httpx.AsyncClient(base_url=url, headers=headers, timeout=10) as http:
                    yield Endpoint(engine, api, server, url, http)
            finally:
                api.abort_all("the test is over")
                serving.cancel()
                await asyncio.wait([serving])
