"""Asking for a statement: the best source this machine has, and only that one.

The order is the network's: an owner's API key, then the device token, then this machine's own
provider keys, then its wallet address, then the local journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from darkbloom_provider.account.refusals import TokenRefusedError
from darkbloom_provider.account.replies import (
    DEVICE_TOKEN_READ,
    AccountEarnings,
    Health,
    NodeEarnings,
    WalletEarnings,
)
from darkbloom_provider.earnings import statement
from darkbloom_provider.earnings.journal import JobRecord, JournalTotals
from darkbloom_provider.earnings.statement import CoordinatorLine, Statement
from darkbloom_provider.errors import CredentialsError, DarkbloomError, UnreachableError
from darkbloom_provider.logs import Secret

AT_ONCE = 8
"""Requests in flight while a machine's keys are asked for."""
MOST_KEYS = 200
"""The newest keys asked for; a machine has one for each start of its provider."""


class MoneyReader(Protocol):
    """What is asked of a coordinator (`CoordinatorClient` can do it)."""

    async def health(self) -> Health:
        """Whether it is up."""

    async def account_earnings(self, token: Secret, limit: int) -> AccountEarnings:
        """An account's figures."""

    async def node_earnings(self, provider_key: str, limit: int) -> NodeEarnings:
        """A provider key's figures."""

    async def wallet_earnings(self, address: str) -> WalletEarnings:
        """A wallet address's figures."""


class LocalBooks(Protocol):
    """What is asked of the journal (`Journal` can do it)."""

    def totals(self) -> JournalTotals:
        """Sums over all jobs."""

    def recent(self, limit: int) -> list[JobRecord]:
        """The newest jobs."""

    def provider_keys(self) -> Sequence[str]:
        """Every key used, newest first."""


@dataclass(frozen=True, slots=True)
class Means:
    """What this machine can identify itself with."""

    api_key: Secret | None = None
    device_token: Secret | None = None
    wallet_address: str | None = None


OpenBooks = Callable[[], AbstractContextManager[LocalBooks]]
"""Opens the journal for reading (`Journal.view`)."""


async def inquire(
    coordinator: MoneyReader, books: OpenBooks, means: Means, *, url: str, limit: int
) -> Statement:
    """The owner's statement from the best source that answers.

    Args:
        coordinator: Whom to ask.
        books: Opens the local journal; called only when the coordinator's figures need it or have
            nothing to say, so a damaged journal does not hide an account.
        means: What to ask with.
        url: The coordinator's address, to be shown.
        limit: The most payouts to list.

    Raises:
        CredentialsError: A token or key was refused that should have been accepted.
        CoordinatorReplyError: The coordinator answers nonsense.
        JournalError: The journal is needed and cannot be read.
    """
    inquiry = _Inquiry(coordinator, books, means, limit)
    try:
        health = await coordinator.health()
        line = CoordinatorLine(url, online=True, providers=health.providers)
        found = await inquiry.ask(line, may_read_with_token=DEVICE_TOKEN_READ in health.extensions)
    except UnreachableError:
        line = CoordinatorLine(url, online=False)
        found = None
    return inquiry.estimates(line) if found is None else found


@dataclass(frozen=True, slots=True)
class _Inquiry:
    coordinator: MoneyReader
    books: OpenBooks
    means: Means
    limit: int

    async def ask(self, line: CoordinatorLine, *, may_read_with_token: bool) -> Statement | None:
        """What the coordinator knows; None if only the journal is left."""
        if self.means.api_key is not None:
            try:
                return await self._account(self.means.api_key, line)
            except TokenRefusedError as error:
                raise _refused_api_key(error) from None
        if self.means.device_token is None:
            return None
        try:
            return await self._account(self.means.device_token, line)
        except TokenRefusedError as error:
            if may_read_with_token:
                raise _refused_token(error) from None
        # The network's own coordinator lets no device token read money. Nothing is wrong with it.
        return await self._machine(line)

    def estimates(self, line: CoordinatorLine) -> Statement:
        """What the journal says."""
        linked = self.means.device_token is not None or self.means.api_key is not None
        with self.books() as books:
            return statement.from_journal(
                books.totals(), books.recent(self.limit), line, self.limit, linked=linked
            )

    async def _account(self, token: Secret, line: CoordinatorLine) -> Statement:
        reply = await self.coordinator.account_earnings(token, self.limit)
        return statement.from_account(reply, line, self.limit)

    async def _machine(self, line: CoordinatorLine) -> Statement | None:
        with self.books() as books:
            known = tuple(dict.fromkeys(books.provider_keys()))
        keys = known[:MOST_KEYS]
        by_node = statement.from_nodes(await self._nodes(keys), line, self.limit)
        if by_node.jobs == 0 and self.means.wallet_address is not None:
            wallet = await self.coordinator.wallet_earnings(self.means.wallet_address)
            if wallet.total_jobs > 0:
                return statement.from_wallet(wallet, line, self.limit)
        if len(keys) < len(known):
            note = f"Counted: the newest {len(keys)} of this machine's {len(known)} provider keys."
            return statement.with_note(by_node, note)
        return by_node if keys else None

    async def _nodes(self, keys: Sequence[str]) -> list[NodeEarnings]:
        places = asyncio.Semaphore(AT_ONCE)

        async def ask(key: str) -> NodeEarnings:
            async with places:
                return await self.coordinator.node_earnings(key, self.limit)

        refusals: list[DarkbloomError] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(key)) for key in keys]
        except* DarkbloomError as errors:
            refusals += [error for error in errors.exceptions if isinstance(error, DarkbloomError)]
        if refusals:
            # One key without an answer makes the sum wrong, and one reason is enough to say so.
            raise refusals[0]
        return [task.result() for task in tasks]


def _refused_api_key(error: TokenRefusedError) -> CredentialsError:
    return CredentialsError(
        "The coordinator does not accept the API key in DARKBLOOM_API_KEY",
        why=error.why,
        next_step="set it to a key of this coordinator, or unset it to use this machine's token",
    )


def _refused_token(error: TokenRefusedError) -> CredentialsError:
    return CredentialsError(
        "The coordinator does not accept this machine's token: it was revoked or is not its own",
        why=error.why,
        next_step="run `darkbloom login` to link this machine again",
    )
