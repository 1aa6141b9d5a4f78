"""`darkbloom login`: link this machine to the owner's account."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import click

from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.credentials import (
    Credentials,
    CredentialsNotSavedError,
    CredentialStore,
)
from darkbloom_provider.account.login import wait_for_approval
from darkbloom_provider.account.refusals import TokenRefusedError
from darkbloom_provider.account.replies import DEVICE_TOKEN_READ, DeviceCode
from darkbloom_provider.cli.context import Invocation, coordinator_option, pass_invocation
from darkbloom_provider.cli.reload import reload_account
from darkbloom_provider.errors import DarkbloomError

INTERRUPTED = 130
"""Exit code of a command ended by Ctrl-C."""


@click.command("login")
@coordinator_option
@pass_invocation
@click.pass_context
def command(ctx: click.Context, invocation: Invocation, *, coordinator: str | None) -> None:
    """Link this machine to your account.

    Shows a code to type in at the console. From then on, what this machine earns is credited to
    your account and can be withdrawn.
    """
    base_url = invocation.config(coordinator=coordinator).coordinator.base_url
    store = CredentialStore(invocation.home, invocation.environ)
    existing = store.load(base_url)

    async def run() -> Credentials | None:
        async with CoordinatorClient(base_url) as client:
            if existing is not None and await _still_good(client, existing):
                return None
            if existing is not None:
                invocation.out.print("The coordinator no longer accepts this machine's token.")
            return await link(invocation, client, clock=time.monotonic, sleep=asyncio.sleep)

    try:
        credentials = asyncio.run(run())
    except KeyboardInterrupt:
        invocation.out.print("\nNot linked. Run `darkbloom login` for a new code.")
        ctx.exit(INTERRUPTED)
    if credentials is None:
        account = existing.account_id if existing is not None else None
        whose = f"account {account}" if account else "an account"
        invocation.out.print(f"This machine is already linked to {whose} at {base_url}.")
        invocation.out.print("To link it to another one, run `darkbloom logout` first.")
        if (running := reload_account(invocation, base_url)) is not None:
            invocation.out.print(running)
        return
    place = _save(store, base_url, credentials)
    whose = f" to account {credentials.account_id}" if credentials.account_id else ""
    invocation.out.print(f"Linked{whose}. The token is kept in {place}.")
    running = reload_account(invocation, base_url)
    invocation.out.print(running or "Start earning with `darkbloom start`.")


async def link(
    invocation: Invocation,
    client: CoordinatorClient,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> Credentials:
    """Show a code and wait until it is approved.

    Raises:
        UnreachableError: The coordinator does not answer.
        DeviceCodeError: Refused, or not approved in time.
    """
    code = await client.device_code()
    out = invocation.out
    out.print("To link this machine, open")
    out.print(f"\n  {code.verification_uri}\n")
    out.print(f"and enter the code  {code.user_code}\n")
    if out.is_terminal and has_browser(invocation.environ):
        _open_browser(code)
    with _waiting(invocation, code) as tell:
        grant = await wait_for_approval(client, code, clock=clock, sleep=sleep, waiting=tell)
    return Credentials(token=grant.token, account_id=grant.account_id)


def has_browser(environ: Mapping[str, str], platform: str = sys.platform) -> bool:
    """Whether a browser window can open for the person at this terminal.

    Not over ssh, where it would open on the far machine's screen, and not without a display, where
    a text browser would take over the terminal.
    """
    if "SSH_CONNECTION" in environ:
        return False
    return platform == "darwin" or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


async def _still_good(client: CoordinatorClient, credentials: Credentials) -> bool:
    """False only if the coordinator says so: one that cannot tell is no reason to link again."""
    try:
        if DEVICE_TOKEN_READ in (await client.health()).extensions:
            await client.account_earnings(credentials.token, 1)
    except TokenRefusedError:
        return False
    except DarkbloomError:
        return True
    return True


def _save(store: CredentialStore, base_url: str, credentials: Credentials) -> str:
    try:
        return store.save(base_url, credentials)
    except CredentialsNotSavedError:
        # A token nobody keeps must not stay valid. Best effort: the disk is what the owner mends.
        asyncio.run(_give_back(base_url, credentials))
        raise


async def _give_back(base_url: str, credentials: Credentials) -> None:
    async with CoordinatorClient(base_url) as client:
        try:
            await client.revoke(credentials.token)
        except DarkbloomError:
            return


def _open_browser(code: DeviceCode) -> None:
    try:
        click.launch(code.verification_uri)
    except OSError:
        # The address stands on the screen.
        return


@contextmanager
def _waiting(invocation: Invocation, code: DeviceCode) -> Iterator[Callable[[float], None]]:
    def line(seconds_left: float) -> str:
        minutes = math.ceil(seconds_left / 60)
        return f"Waiting for your approval ({minutes} min left, Ctrl-C to stop)"

    if not invocation.out.is_terminal:
        invocation.out.print(line(code.expires_in))
        yield lambda _seconds_left: None
        return
    with invocation.out.status(line(code.expires_in)) as status:
        yield lambda seconds_left: status.update(line(seconds_left))
