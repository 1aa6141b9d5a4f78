"""`darkbloom earnings`: what this machine, or its owner's account, has earned."""

from __future__ import annotations

import asyncio
import json

import click

from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.account.credentials import CredentialStore, api_key
from darkbloom_provider.cli.context import (
    Invocation,
    coordinator_option,
    json_option,
    pass_invocation,
)
from darkbloom_provider.earnings import render
from darkbloom_provider.earnings.inquiry import Means, inquire
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.earnings.statement import Statement
from darkbloom_provider.errors import ExitCode
from darkbloom_provider.host import identity
from darkbloom_provider.paths import Home

MOST_ROWS = 1000
"""Coordinators give no more in one reply."""


@click.command("earnings")
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    default=5,
    show_default=True,
    help="How many payouts to list.",
)
@coordinator_option
@json_option
@pass_invocation
@click.pass_context
def command(
    ctx: click.Context,
    invocation: Invocation,
    *,
    limit: int,
    coordinator: str | None,
    as_json: bool,
) -> None:
    """What this machine has earned.

    Shows the account's balance and payouts if the machine is linked (see `darkbloom login`), else
    what is recorded on this machine. With DARKBLOOM_API_KEY set to an API key of yours, it shows
    that key's account. Exit codes: 3 if the coordinator is offline, 4 if the token is refused.
    """
    base_url = invocation.config(coordinator=coordinator).coordinator.base_url
    statement = _statement(invocation, base_url, limit)
    if as_json:
        invocation.out.print(json.dumps(render.document(statement), indent=2, allow_nan=False))
    else:
        invocation.out.print(render.text(statement))
    if not statement.coordinator.online:
        ctx.exit(ExitCode.UNREACHABLE)


def _statement(invocation: Invocation, base_url: str, limit: int) -> Statement:
    home = invocation.home
    means = _means(invocation, base_url)

    async def ask() -> Statement:
        async with CoordinatorClient(base_url) as client:
            return await inquire(
                client, lambda: Journal.view(home.journal), means, url=base_url, limit=limit
            )

    return asyncio.run(ask())


def _means(invocation: Invocation, base_url: str) -> Means:
    key = api_key(invocation.environ)
    if key is not None:
        # The key says more than any token of this machine could: the keyring is left alone.
        return Means(api_key=key)
    home = invocation.home
    credentials = CredentialStore(home, invocation.environ).load(base_url)
    if credentials is None:
        return Means()
    return Means(device_token=credentials.token, wallet_address=_wallet(home))


def _wallet(home: Home) -> str | None:
    # Asking for money must not be what gives a machine its wallet, nor fail over a damaged one.
    if not home.wallet_key.exists():
        return None
    try:
        return identity.wallet_address(home)
    except identity.IdentityError:
        return None
