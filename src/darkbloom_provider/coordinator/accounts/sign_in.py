"""Signing up, in and out, by e-mail address and password.

Nothing here tells a stranger whether an address has an account: a wrong address and a wrong
password get the same answer in the same time, and signing up with a taken address looks like
signing up.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from sqlalchemy import Connection

from darkbloom_provider.coordinator.accounts import invites, passwords, people
from darkbloom_provider.coordinator.accounts.people import AccountError, AuthenticationError, User
from darkbloom_provider.coordinator.accounts.session_tokens import (
    LIFETIME,
    SESSION_ID_BYTES,
    Session,
)
from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.logs import Secret


class SignUpRefusedError(RefusalError):
    """Accounts cannot be opened here in this way."""

    status = HTTPStatus.FORBIDDEN
    type = "forbidden"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session."""

    token: Secret
    user: User
    expires_at: datetime


async def sign_up(services: Services, email: str, password: str, invite_code: str) -> None:
    """Open an account, or do nothing visible if the address has one. Sign in afterwards.

    An invite code is redeemed in the same transaction, so it never opens two accounts.

    Raises:
        AccountError: The address is not one.
        WeakPasswordError: The password is refused.
        SignUpRefusedError: Sign-up is closed, or needs an invite code.
        InviteError: The invite code cannot be used.
    """
    rule = services.policy.sign_up
    if rule == "closed":
        raise SignUpRefusedError(
            "Accounts here are opened by the operator", next_step="ask the operator for one"
        )
    if rule == "invite" and not invite_code:
        raise SignUpRefusedError(
            "An invite code is needed to sign up here", next_step="ask the operator for one"
        )
    address = people.email_address(email)
    hashed = await services.passwords.hash(passwords.checked(password, email=address))
    account_id, now = services.new_id(), services.clock()

    def open_account(connection: Connection) -> None:
        if invite_code:
            invites.usable(connection, invite_code, now=now)
        try:
            people.create_user(
                connection, account_id=account_id, email=address, now=now, password_hash=hashed
            )
        except AccountError:
            return
        if invite_code:
            invites.redeem(connection, invite_code, account_id=account_id, now=now)

    await services.db.write(open_account)


async def sign_in(
    services: Services,
    email: str,
    password: str,
    *,
    address: str,
    lifetime: timedelta = LIFETIME,
) -> SignedIn:
    """A session for the right e-mail address and password.

    Args:
        services: The coordinator's parts.
        email: Who it claims to be.
        password: What it knows.
        address: Where it calls from, as `guards.address_of` gives it.
        lifetime: How long the session lasts.

    Raises:
        ApiError: 429 after too many wrong passwords for this address, right or wrong.
        AuthenticationError: Wrong address or password; it does not say which.
    """
    key = email.strip().lower()[: people.MAX_EMAIL_CHARACTERS]
    services.limiter.admit("password", f"{key} {address}")
    services.limiter.admit("password_anywhere", key)
    record = await services.db.read(lambda c: people.sign_in_record(c, key))
    right = await services.passwords.match(record.password_hash if record else None, password)
    if record is None or not right:
        raise AuthenticationError("Wrong e-mail address or password")
    services.limiter.give_back("password", f"{key} {address}")
    services.limiter.give_back("password_anywhere", key)
    return _session(services, record.user, record.generation, lifetime)


async def change_password(
    services: Services, user: User, current: str, new: str, *, lifetime: timedelta = LIFETIME
) -> SignedIn:
    """Replace a password that its owner knows. Every session ends; the new one is returned.

    Raises:
        ApiError: 429 after too many wrong passwords.
        AuthenticationError: 403, the present password is wrong.
        WeakPasswordError: The new password is refused.
    """
    services.limiter.admit("password", user.account_id)
    record = await services.db.read(lambda c: people.sign_in_record(c, user.email))
    right = await services.passwords.match(record.password_hash if record else None, current)
    if not right:
        raise AuthenticationError(
            "The present password is wrong", status=HTTPStatus.FORBIDDEN, error_type="forbidden"
        )
    services.limiter.give_back("password", user.account_id)
    hashed = await services.passwords.hash(passwords.checked(new, email=user.email))
    generation = await services.db.write(lambda c: people.set_password(c, user.account_id, hashed))
    return _session(services, user, generation, lifetime)


async def sign_out(services: Services, session: Session, *, everywhere: bool = False) -> None:
    """End a session, or all of its account."""
    now = services.clock()

    def end(connection: Connection) -> None:
        people.end_session(connection, session, now=now)
        if everywhere:
            people.end_all_sessions(connection, session.account_id)

    await services.db.write(end)


def _session(services: Services, user: User, generation: int, lifetime: timedelta) -> SignedIn:
    now = services.clock()
    token = services.identity.sessions.issue(
        user.account_id,
        session_id=services.random_hex(SESSION_ID_BYTES),
        now=now,
        generation=generation,
        lifetime=lifetime,
    )
    return SignedIn(token, user, now + lifetime)
