"""What the operator of a private network does to its accounts, without a browser.

Works on the ledger itself: used in-process by the demo and by tests, and by the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from darkbloom_provider.coordinator import accounts, api_keys, books, ledger
from darkbloom_provider.coordinator.accounts import Identity
from darkbloom_provider.coordinator.books import Balance
from darkbloom_provider.coordinator.database import Database
from darkbloom_provider.coordinator.session_tokens import LIFETIME, SESSION_ID_BYTES
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.logs import Secret


@dataclass(frozen=True, slots=True)
class Operator:
    """Accounts, keys and credit."""

    database: Database
    identity: Identity
    sources: Sources

    async def create_user(self, email: str) -> str:
        """Make a local user and return their account id.

        Raises:
            AccountError: The address is empty or taken.
        """
        account_id, now = self.sources.new_id(), self.sources.now()
        user = await self.database.write(
            lambda c: accounts.create_user(c, account_id=account_id, email=email, now=now)
        )
        return user.account_id

    async def find_or_create_user(self, email: str) -> tuple[str, bool]:
        """The account id of a user, and whether it was made just now.

        Raises:
            AccountError: The address is empty.
        """
        account_id, now = self.sources.new_id(), self.sources.now()

        def operation(connection: Connection) -> tuple[str, bool]:
            known = accounts.find_user(connection, email=email)
            if known is not None:
                return known.account_id, False
            made = accounts.create_user(connection, account_id=account_id, email=email, now=now)
            return made.account_id, True

        return await self.database.write(operation)

    def session_token(self, account_id: str, *, lifetime: timedelta = LIFETIME) -> Secret:
        """A sign-in of this account, as the console would hold it."""
        return self.identity.sessions.issue(
            account_id,
            session_id=self.sources.random_hex(SESSION_ID_BYTES),
            now=self.sources.now(),
            lifetime=lifetime,
        )

    async def create_api_key(self, account_id: str) -> Secret:
        """A new API key of a user; shown once, only its hash is kept."""
        now = self.sources.now()
        return await self.database.write(
            lambda c: api_keys.create_api_key(
                c, account_id, random_hex=self.sources.random_hex, now=now
            )
        )

    async def credit(self, account_id: str, micro_usd: int) -> Balance:
        """Give an account credit that can be spent but not withdrawn; its new balance.

        Raises:
            LedgerError: The amount is negative or out of range.
        """
        now = self.sources.now()
        return await self.database.write(
            lambda c: ledger.deposit(c, account_id, micro_usd, now=now, entry_type="admin_credit")
        )

    async def balance(self, account_id: str) -> Balance:
        """What an account holds."""
        return await self.database.read(lambda c: books.balance_of(c, account_id))
