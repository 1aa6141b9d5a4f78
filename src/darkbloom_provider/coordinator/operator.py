"""What the operator of a private network does to its accounts, without a browser.

Works on the ledger itself: used in-process by the demo and by tests, and by the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import Connection

from darkbloom_provider.coordinator.accounts import (
    api_keys,
    device_login,
    invites,
    passwords,
    people,
)
from darkbloom_provider.coordinator.accounts.api_keys import ApiKey
from darkbloom_provider.coordinator.accounts.invites import Invite
from darkbloom_provider.coordinator.accounts.passwords import Passwords
from darkbloom_provider.coordinator.accounts.people import AccountError, Identity, User
from darkbloom_provider.coordinator.accounts.session_tokens import LIFETIME, SESSION_ID_BYTES
from darkbloom_provider.coordinator.ledger import books, reservations
from darkbloom_provider.coordinator.ledger.books import Balance
from darkbloom_provider.coordinator.offer import listing, prices
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue, CatalogueModel
from darkbloom_provider.protocol.money import Price


@dataclass(frozen=True, slots=True)
class Operator:
    """Accounts, keys and credit."""

    database: Database
    identity: Identity
    sources: Sources

    async def create_user(self, email: str) -> str:
        """Make a local user and return their account id.

        Raises:
            AccountError: The address is none, or taken.
        """
        account_id, now = self.sources.new_id(), self.sources.now()
        user = await self.database.write(
            lambda c: people.create_user(c, account_id=account_id, email=email, now=now)
        )
        return user.account_id

    async def find_or_make_user(self, email: str) -> tuple[User, bool]:
        """A user, and whether they were made just now.

        Raises:
            AccountError: The address is none.
        """
        account_id, now = self.sources.new_id(), self.sources.now()
        return await self.database.write(lambda c: _find_or_make(c, email, account_id, now))

    async def find_or_create_user(self, email: str) -> tuple[str, bool]:
        """The account id of a user, and whether it was made just now. Raises as above."""
        user, new = await self.find_or_make_user(email)
        return user.account_id, new

    async def user(self, email: str) -> User:
        """A user who must be there.

        Raises:
            AccountError: Nobody has this address.
        """
        user = await self.database.read(lambda c: people.find_user(c, email=email))
        if user is None:
            raise AccountError(
                f"Nobody here has the e-mail address {email}",
                next_step=f"darkbloom coordinator user add {email}",
            )
        return user

    async def users(self) -> list[User]:
        """Everybody with an account."""
        return await self.database.read(people.list_users)

    async def set_admin(self, account_id: str, *, is_admin: bool) -> None:
        """Make a user an administrator, or an ordinary one again."""
        await self.database.write(lambda c: people.set_admin(c, account_id, is_admin=is_admin))

    async def has_password(self, email: str) -> bool:
        """Whether a user can sign in."""
        record = await self.database.read(lambda c: people.sign_in_record(c, email))
        return record is not None and record.password_hash is not None

    async def set_password(self, email: str, password: str) -> None:
        """Give a user a password, and end their sessions.

        Raises:
            AccountError: Nobody has this address.
            WeakPasswordError: The password is refused.
        """
        user = await self.user(email)
        hashed = await Passwords().hash(passwords.checked(password, email=user.email))
        await self.database.write(lambda c: people.set_password(c, user.account_id, hashed))

    async def sign_out_everywhere(self, email: str) -> None:
        """End all sessions of a user.

        Raises:
            AccountError: Nobody has this address.
        """
        user = await self.user(email)
        await self.database.write(lambda c: people.end_all_sessions(c, user.account_id))

    def session_token(self, account_id: str, *, lifetime: timedelta = LIFETIME) -> Secret:
        """A sign-in of this account, as the console would hold it.

        Not accepted once the account has had a password set or was signed out everywhere.
        """
        return self.identity.sessions.issue(
            account_id,
            session_id=self.sources.random_hex(SESSION_ID_BYTES),
            now=self.sources.now(),
            lifetime=lifetime,
        )

    async def create_api_key(self, account_id: str, *, name: str = "") -> Secret:
        """A new API key of a user; shown once, only its hash is kept.

        Raises:
            AccountError: An active key of theirs has this name.
        """
        now = self.sources.now()
        return await self.database.write(
            lambda c: api_keys.create_api_key(
                c, account_id, random_hex=self.sources.random_hex, now=now, name=name
            )
        )

    async def api_keys(self, email: str) -> list[ApiKey]:
        """The active API keys of a user.

        Raises:
            AccountError: Nobody has this address.
        """
        user = await self.user(email)
        return await self.database.read(lambda c: api_keys.list_api_keys(c, user.account_id))

    async def revoke_api_key(self, email: str, listed_id: str) -> bool:
        """Revoke a key by the id it is listed under. False if it is not an active one of theirs.

        Raises:
            AccountError: Nobody has this address.
        """
        user, now = await self.user(email), self.sources.now()
        return await self.database.write(
            lambda c: api_keys.revoke_api_key_by_id(
                c, listed_id, account_id=user.account_id, now=now
            )
        )

    async def approve(self, user_code: str, email: str) -> tuple[User, bool]:
        """Let the machine that shows a code work for a user, who is made if need be.

        Raises:
            AccountError: The address is none.
            DeviceLoginError: The code is not known, has expired or was used. Nobody is made.
        """
        account_id, now = self.sources.new_id(), self.sources.now()

        def operation(connection: Connection) -> tuple[User, bool]:
            user, new = _find_or_make(connection, email, account_id, now)
            device_login.approve(connection, user_code, account_id=user.account_id, now=now)
            return user, new

        return await self.database.write(operation)

    async def invite(
        self, micro_usd: int, *, code: str, max_uses: int, expires_at: datetime | None
    ) -> tuple[Invite, bool]:
        """Make an invite; whether it is new. One with the same code, amount and uses is kept.

        Raises:
            InviteError: It makes no sense, or the code is taken on other terms.
        """
        now = self.sources.now()

        def make(connection: Connection) -> tuple[Invite, bool]:
            for known in invites.list_invites(connection):
                same = (known.code, known.amount, known.max_uses, known.active)
                if same == (code.strip().upper(), micro_usd, max_uses, True):
                    return known, False
            made = invites.create(
                connection,
                amount=micro_usd,
                random_hex=self.sources.random_hex,
                now=now,
                code=code,
                max_uses=max_uses,
                expires_at=expires_at,
            )
            return made, True

        return await self.database.write(make)

    async def invites(self) -> list[Invite]:
        """Every invite, newest first."""
        return await self.database.read(invites.list_invites)

    async def deactivate_invite(self, code: str) -> bool:
        """Let nobody redeem a code any more. False if there is none."""
        return await self.database.write(lambda c: invites.deactivate(c, code))

    async def credit(self, account_id: str, micro_usd: int) -> Balance:
        """Give an account credit that can be spent but not withdrawn; its new balance.

        Raises:
            LedgerError: The amount is negative or out of range.
        """
        now = self.sources.now()
        return await self.database.write(
            lambda c: reservations.deposit(
                c, account_id, micro_usd, now=now, entry_type="admin_credit"
            )
        )

    async def credit_once(
        self, account_id: str, micro_usd: int, *, reference: str, withdrawable: bool
    ) -> bool:
        """Give credit or a reward; with a reference only once. Whether it was given now.

        Raises:
            LedgerError: The amount is negative or out of range.
        """
        now = self.sources.now()
        entry_type: Literal["admin_credit", "admin_reward"] = (
            "admin_reward" if withdrawable else "admin_credit"
        )
        full = f"{entry_type}:{reference}" if reference else entry_type

        def give(connection: Connection) -> bool:
            if reference and books.has_entry(connection, account_id, full):
                return False
            reservations.deposit(
                connection, account_id, micro_usd, now=now, entry_type=entry_type, reference=full
            )
            return True

        return await self.database.write(give)

    async def catalogue(self, base: Catalogue) -> Catalogue:
        """The models and prices that hold, for a coordinator that was started with `base`."""
        return listing.laid_over(base, await self.database.read(listing.read_changes))

    async def set_price(self, model: str, price: Price) -> None:
        """Set what a model costs from now on.

        Raises:
            PriceError: It is no price.
        """
        now = self.sources.now()
        await self.database.write(
            lambda c: prices.set_price(c, prices.PLATFORM, model, price, now=now)
        )

    async def reset_price(self, model: str) -> bool:
        """Let a model cost what the catalogue says. False if it did."""
        now = self.sources.now()
        return await self.database.write(
            lambda c: prices.end_price(c, prices.PLATFORM, model, now=now)
        )

    async def save_model(self, model: CatalogueModel) -> None:
        """Add a model, or change the one with its id.

        Raises:
            ModelError: It cannot be listed.
        """
        now = self.sources.now()
        await self.database.write(lambda c: listing.save_model(c, model, now=now))

    async def remove_model(self, model_id: str, base: Catalogue) -> None:
        """Take a model out of the catalogue of a coordinator that was started with `base`.

        Raises:
            ModelError: It is not listed.
        """
        now = self.sources.now()
        await self.database.write(
            lambda c: listing.remove_model(c, model_id, catalogue=base, now=now)
        )

    async def balance(self, account_id: str) -> Balance:
        """What an account holds."""
        return await self.database.read(lambda c: books.balance_of(c, account_id))


def _find_or_make(
    connection: Connection, email: str, account_id: str, now: datetime
) -> tuple[User, bool]:
    known = people.find_user(connection, email=email)
    if known is not None:
        return known, False
    return people.create_user(connection, account_id=account_id, email=email, now=now), True
