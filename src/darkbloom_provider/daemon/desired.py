"""What the owner wants served, and for whom: read at the start, and again when it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from darkbloom_provider import logs
from darkbloom_provider.account.credentials import Credentials
from darkbloom_provider.daemon import slots
from darkbloom_provider.daemon.assignment import Assignment
from darkbloom_provider.daemon.rooms import Rooms
from darkbloom_provider.daemon.slots import ModelSlots

_log = logs.get("daemon")


class Desired:
    """The account and the models. One reading at a time, so that the latest wins.

    Args:
        assignment: What the owner asked for at the start.
        rooms: Where it is read from.
        clock: For the slots' idle times.
    """

    def __init__(self, assignment: Assignment, rooms: Rooms, clock: Callable[[], float]) -> None:
        self._assignment = assignment
        self._rooms = rooms
        self._clock = clock
        self._reading = asyncio.Lock()
        self.credentials: Credentials | None = None
        """What links this machine to an account."""
        self.slots = ModelSlots((), clock)
        """The models to serve, and how far each has come."""
        self.left_out: tuple[str, ...] = ()
        """Why other installed models are not served."""

    async def read_account(self) -> bool:
        """Whether the token is another one than before.

        Raises:
            CredentialsError: It cannot be read. What was known stays.
        """
        async with self._reading:
            before = self.credentials
            self.credentials = now = await asyncio.to_thread(self._rooms.credentials)
        return (before and before.token) != (now and now.token)

    async def choose_models(self) -> None:
        """Choose for the first time.

        Raises:
            ModelError: Nothing is installed, or not what was asked for.
            ConfigError: The settings preload what is not served.
        """
        choice = await self._choice()
        self.slots = ModelSlots(choice.models, self._clock, choice.preload)

    async def choose_models_again(self) -> bool:
        """Whether other models are to be served than before. They are not loaded yet.

        Raises:
            ModelError, ConfigError: As above. What was chosen stays.
        """
        async with self._reading:
            choice = await self._choice()
            return self.slots.change_to(choice.models, choice.preload)

    async def _choice(self) -> slots.Choice:
        choice = slots.choose(
            await asyncio.to_thread(self._rooms.installed),
            self._assignment.config.backend,
            named=self._assignment.models,
            all_models=self._assignment.all_models,
        )
        self.left_out = choice.left_out
        for warning in choice.left_out:
            _log.warning(warning)
        return choice
