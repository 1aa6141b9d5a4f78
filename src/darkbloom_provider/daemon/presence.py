"""Whether the coordinator still has this machine on its list: its silence alone does not tell.

A coordinator that dropped a provider leaves the socket open, answers pings and goes on challenging.
What it tells everybody else is asked for now and then, while no work comes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from darkbloom_provider import logs
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.link.state import LinkState, Phase

if TYPE_CHECKING:
    from darkbloom_provider.account.client import CoordinatorClient

CHECK_S: Final = 300.0
"""Between two looks, give or take a quarter."""
SETTLED_S: Final = 60.0
"""A registration younger than this is not looked for yet."""
SMALL_NETWORK: Final = 50
"""The list of a larger network is too long to be fetched for this."""
REASON: Final = "no work comes, and the coordinator does not list this machine"

_log = logs.get("daemon.presence")


@dataclass(frozen=True, slots=True)
class Listed:
    """What a coordinator tells everybody about one provider, as far as it tells providers apart."""

    memory_gb: int
    models: frozenset[str]


class Link(Protocol):
    """What is needed of the session."""

    @property
    def state(self) -> LinkState:
        """Where the link is."""
        ...

    def request_reregister(self, reason: str) -> None:
        """Register again as soon as no job runs."""
        ...


Fleet = Sequence[Listed] | None
"""Everybody on the list; None if that cannot be told."""


class Presence:
    """Looks for this machine on the coordinator's list, and registers again when it has gone.

    The list is believed only after it has held a machine like this one since the latest
    registration: a coordinator that lists differently must not be registered with for ever.

    Args:
        fleet: Asks for the list; a `DarkbloomError` means that it cannot be told.
        me: What this machine would be listed as.
        link: The session.
        jobs: Requests that came since the start.
        clock: The link's clock.
        chance: A number in [0, 1), for the spread of the looks.
    """

    def __init__(
        self,
        *,
        fleet: Callable[[], Awaitable[Fleet]],
        me: Callable[[], Listed],
        link: Link,
        jobs: Callable[[], int],
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._fleet = fleet
        self._me = me
        self._link = link
        self._jobs = jobs
        self._clock = clock
        self._chance = chance
        self._jobs_before = 0
        self._was_listed = False

    async def keep(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look again and again, until cancelled."""
        while True:
            await sleep(CHECK_S * (0.75 + 0.5 * self._chance()))
            await self.look()

    async def look(self) -> None:
        """One look, if no work came since the last one."""
        jobs, self._jobs_before = self._jobs_before, self._jobs()
        state = self._link.state
        if state.phase is not Phase.REGISTERED or state.registered_at is None:
            self._was_listed = False
            return
        if self._jobs_before != jobs or self._clock() - state.registered_at < SETTLED_S:
            return
        try:
            fleet = await self._fleet()
        except (DarkbloomError, OSError) as error:
            _log.info("the coordinator's list was not had", why=str(error))
            return
        if fleet is None:
            return
        listed = any(may_be(entry, self._me()) for entry in fleet)
        if self._was_listed and not listed:
            self._link.request_reregister(REASON)
        self._was_listed = listed


def may_be(entry: Listed, me: Listed) -> bool:
    """Whether a list's entry could be this machine; it carries nothing that would prove it.

    A coordinator leaves out models that its catalogue does not have.
    """
    return entry.memory_gb == me.memory_gb and entry.models <= me.models


async def fleet_of(client: CoordinatorClient) -> Fleet:
    """The list as a coordinator publishes it.

    Raises:
        DarkbloomError: It does not answer, or not as documented.
    """
    count = (await client.health()).providers
    if count is None or count > SMALL_NETWORK:
        return None
    if count == 0:
        return ()
    fleet = await client.providers()
    return [Listed(entry.memory_gb, frozenset(entry.models)) for entry in fleet.providers]
