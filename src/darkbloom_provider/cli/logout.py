"""`darkbloom logout`: unlink this machine, and say honestly what that did."""

from __future__ import annotations

import asyncio

import click

from darkbloom_provider.account.client import CoordinatorClient, Revocation
from darkbloom_provider.account.credentials import (
    Credentials,
    CredentialStore,
    DamagedTokenError,
)
from darkbloom_provider.cli.context import Invocation, coordinator_option, pass_invocation
from darkbloom_provider.cli.reload import reload_account
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.logs import Secret

ONLY_LOCAL = "Only the copy on this machine was removed"


@click.command("logout")
@coordinator_option
@pass_invocation
def command(invocation: Invocation, *, coordinator: str | None) -> None:
    """Unlink this machine.

    Revokes this machine's token, where the coordinator offers that, and forgets it.
    """
    base_url = invocation.config(coordinator=coordinator).coordinator.base_url
    store = CredentialStore(invocation.home, invocation.environ)
    out = invocation.out
    try:
        credentials = store.load(base_url)
    except DamagedTokenError:
        store.delete(base_url)
        out.print(f"{ONLY_LOCAL}: it was damaged, so it could not be revoked.")
        _tell_provider(invocation, base_url)
        return
    if credentials is None:
        out.print(f"This machine is not linked to an account at {base_url}. Nothing was done.")
        return
    if credentials.foreign:
        _leave(invocation, credentials)
        return
    outcome = asyncio.run(_revoke(base_url, credentials.token))
    store.delete(base_url)
    out.print(outcome)
    _tell_provider(invocation, base_url)
    left = store.load(base_url)
    if left is not None:
        _leave(invocation, left)
    else:
        out.print("Run `darkbloom login` to link this machine again.")


def _tell_provider(invocation: Invocation, base_url: str) -> None:
    running = reload_account(invocation, base_url)
    if running is not None:
        invocation.out.print(running)


async def _revoke(base_url: str, token: Secret) -> str:
    """Revoke if possible; what to tell the owner."""
    try:
        async with CoordinatorClient(base_url) as client:
            revocation = await client.revoke(token)
    except DarkbloomError as error:
        return f"{ONLY_LOCAL}. The token may still be valid: {error.what} ({error.why})."
    if revocation is Revocation.REVOKED:
        return "Logged out: the token was revoked and removed from this machine."
    if revocation is Revocation.UNKNOWN:
        return "Logged out: the token was no longer valid, and was removed from this machine."
    return (
        f"{ONLY_LOCAL}: this coordinator cannot revoke tokens. It may go on crediting this machine "
        "to the account it was linked to."
    )


def _leave(invocation: Invocation, credentials: Credentials) -> None:
    invocation.out.print(
        f"This machine is linked by the network's other client, through {credentials.kept_in}, "
        "which darkbloom never changes."
    )
    invocation.out.print(f"To unlink it, remove that file: rm '{credentials.kept_in}'")
