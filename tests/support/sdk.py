"""A provider in this process, asked through the vendors' own clients, by one of two ways.

`local`: `serve --local`. `network`: a coordinator in this process, which the provider is linked to.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai

from darkbloom_provider.config import AttestationSection, Config, CoordinatorSection
from darkbloom_provider.daemon.provider import RealRooms
from darkbloom_provider.daemon.supervisor import (
    Assignment,
    LocalEndpoint,
    Supervisor,
    Surroundings,
)
from darkbloom_provider.engine.requests import Delta, EngineSnapshot, LoadedModel
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.host.privacy import Check
from darkbloom_provider.link.clock import waking_clock
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import Home
from darkbloom_provider.protocol.messages import PrivacyCapabilities
from support.daemon_parts import FakeEngine
from support.network import SLOW, Network, network
from support.processes import environment, until
from support.provider_home import MODEL, provider_home

Way = Literal["local", "network"]
WAYS: tuple[Way, ...] = ("local", "network")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
KEY = "darkbloom-local-" + "1" * 64
QWEN = LoadedModel(
    MODEL, 1024, 10, 0.0, "<tool_call> <think> </think>", frozenset({"<think>", "</think>"})
)


class ScriptedEngine(FakeEngine):
    """An engine that says its pieces, for a model that writes as Qwen does."""

    def __init__(self, *pieces: str | Delta) -> None:
        super().__init__(*pieces)
        self.model = QWEN

    async def load(self, model_id: str, path: Path, *, make_room: bool = True) -> LoadedModel:
        return self.model

    async def unload(self, model_id: str) -> None:
        """Nothing to free."""

    def snapshot(self) -> EngineSnapshot:
        return EngineSnapshot()


class _Rooms(RealRooms):
    """The real parts, but for the engine if there is another."""

    def __init__(self, assignment: Assignment, environ: dict[str, str], other: Any) -> None:
        super().__init__(assignment, environ)
        self._other = other

    def engine(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[Any]:
        if self._other is None:
            return super().engine(*args, **kwargs)
        return self._held()

    def privacy(self, measured: Posture) -> dict[str, Check]:
        """All of them: the coordinator sends no work otherwise, and this process tests others."""
        return dict.fromkeys(PrivacyCapabilities.model_fields, Check(True, "a test"))

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[Any]:
        yield self._other


@dataclass
class Route:
    """One way to a running provider."""

    way: Way
    url: str
    """Without `/v1`."""
    key: str
    supervisor: Supervisor
    openai: openai.AsyncOpenAI
    net: Network | None = None
    """The coordinator's side, on the way that has one."""

    @property
    def model(self) -> str:
        return MODEL

    async def idle(self) -> None:
        """Wait until the provider serves nothing."""
        await until(lambda: self.supervisor.status().jobs.in_flight == 0, "the provider to be idle")


Open = Callable[..., AbstractAsyncContextManager[Route]]
"""Opens one way; with an engine given, to what that one says."""


@asynccontextmanager
async def route(
    way: Way, root: Path, weights: Path, engine: ScriptedEngine | None = None
) -> AsyncIterator[Route]:
    """A provider that serves the model `MODEL`, its weights being any."""
    if way == "local":
        home = provider_home(root, "http://127.0.0.1:9", weights)
        endpoint = LocalEndpoint(0, Secret(KEY))
        async with _provider(home, Config(), engine, endpoint) as supervisor:
            await until(lambda: supervisor.phase == "serving", "the endpoint")
            local = supervisor.status().local
            assert local is not None
            async with _client(local.url, KEY) as client:
                yield Route(way, local.url, KEY, supervisor, client)
        return
    async with network(root / "coordinator", timing=SLOW) as net:
        home = provider_home(root, net.coordinator.base_url, weights)
        settings = Config(
            coordinator=CoordinatorSection(url=net.ws_url, heartbeat_interval_secs=1),
            attestation=AttestationSection(posture="development"),
        )
        async with _provider(home, settings, engine) as supervisor:
            await until(lambda: net.verified() == 1, "the provider to be routable")
            base, key = net.coordinator.base_url, net.http.headers["authorization"].split()[1]
            async with _client(base, key) as client:
                yield Route(way, base, key, supervisor, client, net)
            await net.idle()


@asynccontextmanager
async def _provider(
    home: Home,
    settings: Config,
    engine: ScriptedEngine | None,
    endpoint: LocalEndpoint | None = None,
) -> AsyncIterator[Supervisor]:
    assignment = Assignment(home=home, config=settings, local=endpoint)
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)  # noqa: E731 - one use
    supervisor = Supervisor(
        assignment,
        _Rooms(assignment, environment(home.root), engine),
        Surroundings(pid=4711, now=now, clock=waking_clock),
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run())
        try:
            yield supervisor
        finally:
            supervisor.stop(5)


def _client(url: str, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30)


def user(text: str) -> list[Any]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def said(chunks: Sequence[Any], choice: int = 0) -> str:
    """The text of a streamed answer."""
    found = [c for chunk in chunks for c in chunk.choices if c.index == choice]
    return "".join(c.delta.content or "" for c in found)


async def read_all(stream: AsyncIterator[Any]) -> list[Any]:
    """Everything a stream holds."""
    return [chunk async for chunk in stream]
