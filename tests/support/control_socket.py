"""A daemon's end of the control socket, for tests of commands that ask it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from darkbloom_provider.control.models import (
    AccountReload,
    DrainReply,
    ModelsReload,
    StatusReport,
)
from darkbloom_provider.control.server import serving
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.paths import Home


class ToldDaemon:
    """Answers reloads with what the test put there, or refuses them."""

    def __init__(
        self,
        account: AccountReload | DarkbloomError | None = None,
        models: ModelsReload | DarkbloomError | None = None,
    ) -> None:
        self.account = account or AccountReload()
        self.models = models or ModelsReload()
        self.asked: list[str] = []

    def status(self) -> StatusReport:
        """Nobody asks."""
        raise NotImplementedError

    def drain(self, deadline_s: float) -> DrainReply:
        """Nobody asks."""
        raise NotImplementedError

    async def reload_account(self) -> AccountReload:
        """As the test says."""
        self.asked.append("account")
        if isinstance(self.account, DarkbloomError):
            raise self.account
        return self.account

    async def reload_models(self) -> ModelsReload:
        """As the test says."""
        self.asked.append("models")
        if isinstance(self.models, DarkbloomError):
            raise self.models
        return self.models


@contextmanager
def told_daemon(home: Home, daemon: ToldDaemon) -> Iterator[ToldDaemon]:
    """`daemon` behind the control socket of `home` while the block runs, on a thread."""
    up = threading.Event()
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def live() -> None:
        end = asyncio.Event()
        async with serving(daemon, home.control_socket):
            over.append((asyncio.get_running_loop(), end))
            up.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    assert up.wait(10)
    try:
        yield daemon
    finally:
        loop, end = over[0]
        loop.call_soon_threadsafe(end.set)
        thread.join()
