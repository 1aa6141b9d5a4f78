"""`darkbloom coordinator init|user|key|invite|credit|approve`: accounts without a browser.

Each works beside a running coordinator, and doing the same thing twice changes nothing the second
time, except where it makes something new by its nature: a key, or credit without a reference.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import click

from darkbloom_provider import paths
from darkbloom_provider.cli.coordinator_state import (
    Books,
    amount,
    email_option,
    new_password,
    on_books,
    password_stdin_option,
)
from darkbloom_provider.coordinator.accounts.api_keys import key_id
from darkbloom_provider.coordinator.accounts.invites import Invite
from darkbloom_provider.coordinator.accounts.people import AccountError, User
from darkbloom_provider.coordinator.operator import Operator
from darkbloom_provider.coordinator.rest.replies import rfc3339
from darkbloom_provider.coordinator.server import ADMIN_KEY_FILE
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol.money import format_usd

ADMIN_KEY_BYTES = 32


# ---------------------------------------------------------------- init


@click.command("init")
@click.option("--admin", metavar="ADDRESS", help="Make this user an administrator.")
@password_stdin_option
@on_books
def init(books: Books, *, admin: str | None, password_stdin: bool) -> None:
    """Make a coordinator ready: its directory, ledger, keys and an administrator.

    Only an initialised coordinator can listen for other machines. What is there already stays as
    it is, so this can be typed again.
    """
    key_file = books.directory / ADMIN_KEY_FILE

    async def prepare(operator: Operator) -> tuple[User, bool] | None:
        if admin is None:
            return None
        user, _ = await operator.find_or_make_user(admin)
        await operator.set_admin(user.account_id, is_admin=True)
        return user, await operator.has_password(user.email)

    made = books.operate(prepare)
    new_key = not key_file.exists()
    if new_key:
        paths.write_private(key_file, secrets.token_hex(ADMIN_KEY_BYTES).encode())
    if made is not None and not made[1]:
        _set_password(books, made[0].email, from_stdin=password_stdin)
    elif password_stdin:
        reason = "name them with --admin" if made is None else "use `coordinator user password`"
        raise UsageError("Nobody's password is to be set here", next_step=reason)
    admins = [user.email for user in books.operate(Operator.users) if user.is_admin]
    books.show(
        {
            "directory": str(books.directory),
            "admin_key_file": str(key_file),
            "admin_key_made": new_key,
            "admins": admins,
        },
        [
            f"Directory: {books.directory}",
            f"Admin key: {key_file}{' (new)' if new_key else ''}",
            f"Admins:    {', '.join(admins) or 'none; add --admin ADDRESS'}",
            "Next: darkbloom coordinator serve",
        ],
    )


# ---------------------------------------------------------------- user


@click.group("user")
def user_group() -> None:
    """The people with an account."""


@user_group.command("add")
@click.argument("email")
@click.option("--admin", is_flag=True, help="As an administrator.")
@click.option("--password", "ask", is_flag=True, help="Ask for a password to sign in with.")
@password_stdin_option
@on_books
def add_user(books: Books, *, email: str, admin: bool, ask: bool, password_stdin: bool) -> None:
    """Make a user. Without a password they can use API keys, but not sign in."""
    password = new_password(from_stdin=password_stdin) if ask or password_stdin else None

    async def add(operator: Operator) -> tuple[User, bool]:
        user, new = await operator.find_or_make_user(email)
        if admin:
            await operator.set_admin(user.account_id, is_admin=True)
        if password is not None:
            await operator.set_password(user.email, password)
        return user, new

    user, new = books.operate(add)
    books.show(
        {"account_id": user.account_id, "email": user.email, "new": new},
        [f"{'New user' if new else 'User'}: {user.email} (account {user.account_id})"],
    )


@user_group.command("list")
@on_books
def list_users(books: Books) -> None:
    """List everybody with an account."""
    users = books.operate(Operator.users)
    books.show(
        {
            "users": [
                {"account_id": u.account_id, "email": u.email, "admin": u.is_admin} for u in users
            ]
        },
        [f"{u.email}  {u.account_id}{'  admin' if u.is_admin else ''}" for u in users]
        or ["Nobody has an account yet. Next: darkbloom coordinator user add ADDRESS"],
    )


@user_group.command("password")
@click.argument("email")
@password_stdin_option
@on_books
def set_password(books: Books, *, email: str, password_stdin: bool) -> None:
    """Set a user's password. It signs them out everywhere; API keys go on working."""
    _set_password(books, email, from_stdin=password_stdin)
    books.show(
        {"email": email, "status": "password_set"},
        [f"The password of {email} is set; their sessions have ended."],
    )


@user_group.command("sign-out")
@click.argument("email")
@on_books
def sign_out(books: Books, *, email: str) -> None:
    """End all sessions of a user."""
    books.operate(lambda operator: operator.sign_out_everywhere(email))
    books.show({"email": email, "status": "signed_out"}, [f"{email} is signed out everywhere."])


@user_group.command("admin")
@click.argument("email")
@click.option("--remove", is_flag=True, help="Make them an ordinary user again.")
@on_books
def set_admin(books: Books, *, email: str, remove: bool) -> None:
    """Make a user an administrator."""

    async def change(operator: Operator) -> None:
        user = await operator.user(email)
        await operator.set_admin(user.account_id, is_admin=not remove)

    books.operate(change)
    books.show(
        {"email": email, "admin": not remove},
        [f"{email} is {'an ordinary user' if remove else 'an administrator'} now."],
    )


def _set_password(books: Books, email: str, *, from_stdin: bool) -> None:
    password = new_password(from_stdin=from_stdin)
    books.operate(lambda operator: operator.set_password(email, password))


# ---------------------------------------------------------------- key


@click.group("key", invoke_without_command=True)
@click.option("--email", metavar="ADDRESS", help="The user.")
@click.option("--name", default="", metavar="TEXT", help="What the key is for.")
@click.option("--credit", metavar="USD", help="Credit to give, for example 5 or 0.25.")
@on_books
def key_group(books: Books, *, email: str | None, name: str, credit: str | None) -> None:
    """Make an API key for a user of this network, and the user if need be.

    Works while the coordinator runs. The key is shown once.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    if email is None:
        raise click.UsageError("Missing option '--email'.")
    micro_usd = 0 if credit is None else amount(credit, option="--credit")

    async def make(operator: Operator) -> tuple[User, bool, Secret, int]:
        user, new = await operator.find_or_make_user(email)
        secret = await operator.create_api_key(user.account_id, name=name)
        if micro_usd:
            await operator.credit(user.account_id, micro_usd)
        return user, new, secret, (await operator.balance(user.account_id)).balance

    user, new, secret, balance = books.operate(make)
    books.show(
        {
            "account_id": user.account_id,
            "email": user.email,
            "new": new,
            "id": key_id(secret.reveal()),
            "name": name,
            "api_key": secret.reveal(),
            "balance_micro_usd": balance,
        },
        [
            f"{'New user' if new else 'User'}: {email} (account {user.account_id})",
            f"Balance:  {format_usd(balance)}",
            f"API key:  {secret.reveal()}",
            "Keep the key: it is not shown again.",
        ],
    )


@key_group.command("list")
@email_option
@on_books
def list_keys(books: Books, *, email: str) -> None:
    """List a user's active API keys. The keys themselves are not kept."""
    keys = books.operate(lambda operator: operator.api_keys(email))
    books.show(
        {
            "keys": [
                {"id": k.id, "name": k.name, "hint": k.hint, "created_at": rfc3339(k.created_at)}
                for k in keys
            ]
        },
        [f"{k.id}  …{k.hint}  {k.created_at:%Y-%m-%d}  {k.name}" for k in keys]
        or [f"{email} has no API key."],
    )


@key_group.command("revoke")
@click.argument("key_id")
@email_option
@on_books
def revoke_key(books: Books, *, key_id: str, email: str) -> None:
    """Revoke an API key by the id that `key list` shows."""
    revoked = books.operate(lambda operator: operator.revoke_api_key(email, key_id))
    books.show(
        {"id": key_id, "revoked": revoked},
        [f"Key {key_id} is revoked." if revoked else f"{email} has no active key {key_id}."],
    )


# ---------------------------------------------------------------- invite and credit


@click.group("invite")
def invite_group() -> None:
    """Invite codes: credit for whoever redeems one, and a way to sign up."""


@invite_group.command("create")
@click.option("--amount", "usd", default="0", show_default=True, metavar="USD", help="Credit.")
@click.option("--code", default="", metavar="CODE", help="A code of your choice.")
@click.option(
    "--uses", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How often."
)
@click.option("--days", type=click.IntRange(1, 3650), help="Expires after so many days.")
@on_books
def create_invite(books: Books, *, usd: str, code: str, uses: int, days: int | None) -> None:
    """Make an invite code. With --code, one that is there with the same terms is kept."""
    micro_usd = amount(usd, option="--amount")

    async def make(operator: Operator) -> tuple[Invite, bool]:
        expires = None if days is None else operator.sources.now() + timedelta(days=days)
        return await operator.invite(micro_usd, code=code, max_uses=uses, expires_at=expires)

    invite, new = books.operate(make)
    books.show(
        {**_invite(invite), "new": new},
        [f"{'Invite code' if new else 'Invite code, as before'}: {invite.code}", _terms(invite)],
    )


@invite_group.command("list")
@on_books
def list_invites(books: Books) -> None:
    """List every invite code."""
    found = books.operate(Operator.invites)
    books.show(
        {"invites": [_invite(invite) for invite in found]},
        [f"{invite.code}  {_terms(invite)}" for invite in found]
        or ["No invite codes. Next: darkbloom coordinator invite create --amount 5"],
    )


@invite_group.command("revoke")
@click.argument("code")
@on_books
def revoke_invite(books: Books, *, code: str) -> None:
    """Let nobody redeem a code any more. What it has given stays given."""
    if not books.operate(lambda operator: operator.deactivate_invite(code)):
        raise AccountError(
            f"There is no invite code {code}", next_step="darkbloom coordinator invite list"
        )
    books.show({"code": code.upper(), "active": False}, [f"{code.upper()} is no longer redeemed."])


@click.command("credit")
@click.argument("email")
@click.argument("usd", metavar="USD")
@click.option("--withdrawable", is_flag=True, help="As a reward, which can be paid out.")
@click.option(
    "--reference", default="", metavar="TEXT", help="Given once only, however often this is typed."
)
@on_books
def credit(books: Books, *, email: str, usd: str, withdrawable: bool, reference: str) -> None:
    """Give a user credit, for example 5 or 0.25 dollars."""
    micro_usd = amount(usd, option="USD")

    async def give(operator: Operator) -> tuple[bool, int]:
        user = await operator.user(email)
        given = await operator.credit_once(
            user.account_id, micro_usd, reference=reference, withdrawable=withdrawable
        )
        return given, (await operator.balance(user.account_id)).balance

    given, balance = books.operate(give)
    what = f"{email} was given {format_usd(micro_usd)}"
    books.show(
        {"email": email, "credited_micro_usd": micro_usd if given else 0, "new": given}
        | {"balance_micro_usd": balance},
        [
            f"{what}." if given else f"{what} before, under {reference!r}; nothing was done.",
            f"Balance: {format_usd(balance)}",
        ],
    )


def _invite(invite: Invite) -> dict[str, Any]:
    return {
        "code": invite.code,
        "amount_micro_usd": invite.amount,
        "max_uses": invite.max_uses,
        "used_count": invite.used_count,
        "active": invite.active,
        "expires_at": None if invite.expires_at is None else rfc3339(invite.expires_at),
    }


def _terms(invite: Invite) -> str:
    until = "" if invite.expires_at is None else f", until {invite.expires_at:%Y-%m-%d}"
    over = "" if invite.active else ", revoked"
    used = f"used {invite.used_count} of {invite.max_uses}"
    return f"{format_usd(invite.amount)}, {used}{until}{over}"


# ---------------------------------------------------------------- approve


@click.command("approve")
@click.argument("user_code")
@email_option
@on_books
def approve(books: Books, *, user_code: str, email: str) -> None:
    """Approve the code that `darkbloom login` shows on another machine.

    From its next connection on, that machine earns for the user.
    """
    user, new = books.operate(lambda operator: operator.approve(user_code, email))
    books.show(
        {"account_id": user.account_id, "email": user.email, "new": new, "status": "approved"},
        [f"Approved: the machine now belongs to {'new ' if new else ''}user {email}."],
    )


COMMANDS = (init, user_group, key_group, invite_group, credit, approve)
