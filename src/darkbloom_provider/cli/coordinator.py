"""`darkbloom coordinator`: run a whole network on this machine, and look after its accounts."""

from __future__ import annotations

import asyncio
import math
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import get_args

import click

from darkbloom_provider import logs
from darkbloom_provider.cli import (
    coordinator_accounts,
    coordinator_deposits,
    coordinator_explain,
    coordinator_ledger,
    coordinator_offer,
    option_checks,
)
from darkbloom_provider.cli.context import Invocation, pass_invocation
from darkbloom_provider.cli.coordinator_state import (
    catalogue_option,
    data_option,
    database_option,
    read_text,
)
from darkbloom_provider.coordinator.payouts.stripe_secrets import stripe_secret
from darkbloom_provider.coordinator.server import (
    ADMIN_KEY_FILE,
    RELEASE_KEY_FILE,
    RunningCoordinator,
    running_coordinator,
)
from darkbloom_provider.coordinator.settings import (
    DEFAULT_PORT,
    MIN_ADMIN_KEY_CHARACTERS,
    UNLIMITED,
    Payouts,
    Policy,
    RailName,
    Rate,
    Rates,
    Settings,
    SignUp,
    TrustLevel,
)
from darkbloom_provider.coordinator.store.storage import parse_url
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue

_NEW_ADMIN_KEY = "put a long random text into it, for example: openssl rand -hex 32"


@click.group("coordinator")
def command() -> None:
    """Run a whole network on this machine: for tests, and for a private network of Macs."""


for _command in (
    *coordinator_accounts.COMMANDS,
    *coordinator_deposits.COMMANDS,
    *coordinator_explain.COMMANDS,
    *coordinator_ledger.COMMANDS,
    *coordinator_offer.COMMANDS,
):
    command.add_command(_command)


@command.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=DEFAULT_PORT,
    show_default=True,
    help="0 takes a free one.",
)
@data_option
@database_option
@catalogue_option
@click.option(
    "--admin-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PATH",
    help="File with the operator's key; admin-key in DIR by default, which `init` makes.",
)
@click.option(
    "--fee",
    "fee_percent",
    type=click.IntRange(0, 100),
    default=0,
    show_default=True,
    metavar="PERCENT",
    help="The platform's share of every job.",
)
@click.option(
    "--personal-prices",
    is_flag=True,
    help="Let owners ask for less than the price of a model (PUT /v1/pricing).",
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    metavar="N",
    help="Requests that any one provider may have at once, whatever its memory.",
)
@click.option(
    "--python-hash",
    "python_hashes",
    multiple=True,
    metavar="HASH",
    callback=option_checks.hashes,
    help="Take only providers with this interpreter (see `darkbloom runtime hash`); repeatable.",
)
@click.option(
    "--runtime-hash",
    "runtime_hashes",
    multiple=True,
    metavar="HASH",
    callback=option_checks.hashes,
    help="Take only providers with this runtime; may be repeated.",
)
@click.option(
    "--template-hash",
    "template_hashes",
    multiple=True,
    metavar="NAME=HASH",
    callback=option_checks.template_hashes,
    help="Take only providers with just the chat templates listed; may be repeated.",
)
@click.option(
    "--binary-hash",
    "binary_hashes",
    multiple=True,
    metavar="HASH",
    callback=option_checks.hashes,
    help="Trust no provider that reports another program; may be repeated.",
)
@click.option(
    "--min-version",
    metavar="VERSION",
    callback=option_checks.version,
    help="Take no provider that says it is older, for example 0.4.7.",
)
@click.option(
    "--min-trust",
    type=click.Choice(["none", "self_signed"]),
    default="none",
    show_default=True,
    help="What a provider must have proved; self_signed is a valid attestation of its own.",
)
@click.option(
    "--sign-up",
    type=click.Choice(get_args(SignUp)),
    default="invite",
    show_default=True,
    help="Who may open an account by themselves.",
)
@click.option(
    "--rate-limit",
    type=click.FloatRange(min=0),
    default=Rates().consumer.per_second,
    show_default=True,
    metavar="N",
    help="Requests a second that each account may make; 0 sets no limit.",
)
@click.option(
    "--sealed-requests/--no-sealed-requests",
    default=True,
    show_default=True,
    help="Whether consumers may seal what they ask for this coordinator's own key.",
)
@click.option(
    "--payouts",
    type=click.Choice(get_args(RailName)),
    default="sandbox",
    show_default=True,
    help="How owners are paid out. The sandbox moves no money, and says so everywhere.",
)
@click.option(
    "--deposits/--no-deposits",
    default=True,
    show_default=True,
    help="Whether people can buy credit, over the same rail. In the sandbox it costs nothing.",
)
@click.option(
    "--sandbox-delay",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="How long a sandbox payout takes.",
)
@click.option(
    "--console-url",
    metavar="URL",
    callback=option_checks.web_address,
    help="Where browsers find the console, if not at its own address, as behind a proxy with TLS.",
)
@click.option(
    "--proxy",
    "proxies",
    multiple=True,
    metavar="ADDRESS",
    callback=option_checks.networks,
    help="Believe this reverse proxy (address or network) about who calls; may be repeated.",
)
@pass_invocation
def serve(
    invocation: Invocation,
    *,
    host: str,
    port: int,
    data: Path | None,
    database: str | None,
    catalogue: Catalogue,
    admin_key_file: Path | None,
    fee_percent: int,
    personal_prices: bool,
    max_requests: int | None,
    python_hashes: frozenset[str],
    runtime_hashes: frozenset[str],
    template_hashes: dict[str, str],
    binary_hashes: frozenset[str],
    min_version: str | None,
    min_trust: TrustLevel,
    sign_up: SignUp,
    rate_limit: float,
    sealed_requests: bool,
    payouts: RailName,
    deposits: bool,
    sandbox_delay: float,
    console_url: str | None,
    proxies: tuple[str, ...],
) -> None:
    """Run a coordinator in this terminal until Ctrl-C.

    Its ledger is kept. A second Ctrl-C cuts it off at once; nothing is lost even then.
    """
    directory = data or invocation.home.coordinator
    settings = Settings(
        state_directory=directory,
        host=host,
        port=port,
        database=database,
        admin_key=_operator_key(admin_key_file or _kept(directory, ADMIN_KEY_FILE)),
        release_key=_operator_key(_kept(directory, RELEASE_KEY_FILE)),
        policy=Policy(
            fee_percent=fee_percent,
            personal_prices=personal_prices,
            max_requests=max_requests,
            sign_up=sign_up,
            accepted_python_hashes=python_hashes,
            accepted_runtime_hashes=runtime_hashes,
            accepted_template_hashes=template_hashes,
            accepted_binary_hashes=binary_hashes,
            min_version=min_version,
            min_trust=min_trust,
        ),
        payouts=replace(_payouts(invocation, directory, payouts, sandbox_delay), deposits=deposits),
        rates=Rates(consumer=_rate(rate_limit)),
        console_url=console_url,
        proxies=proxies,
        sealed_requests=sealed_requests,
    )
    logs.configure(verbose=invocation.verbose)
    asyncio.run(_serve(invocation, settings, catalogue, custom_data=data is not None))


async def _serve(
    invocation: Invocation, settings: Settings, catalogue: Catalogue, *, custom_data: bool
) -> None:
    stop = asyncio.Event()
    with _signals(stop):
        async with running_coordinator(settings, catalogue) as coordinator:
            _announce(invocation, coordinator, custom_data=custom_data)
            await stop.wait()
            invocation.out.print("Stopping. Open requests end now and are refunded.")
    invocation.out.print("Stopped.")


class _signals:  # noqa: N801 - reads as a verb in `with`
    """Within, the first SIGINT or SIGTERM sets an event; a second one ends the process at once."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._first)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def _first(self) -> None:
        self.__exit__()
        for number in (signal.SIGINT, signal.SIGTERM):
            # The ledger is safe against a sudden end, so the second one needs no ceremony.
            signal.signal(number, signal.SIG_DFL)
        self._stop.set()


def _payouts(
    invocation: Invocation, directory: Path, rail: RailName, sandbox_delay: float
) -> Payouts:
    delay = timedelta(hours=sandbox_delay)
    if rail != "stripe":
        return Payouts(rail, delay)
    environ = invocation.environ
    return Payouts(
        rail,
        delay,
        stripe_secret("secret-key", directory=directory, environ=environ),
        stripe_secret("webhook-secret", directory=directory, environ=environ),
        stripe_secret("checkout-webhook-secret", directory=directory, environ=environ),
    )


def _announce(
    invocation: Invocation, coordinator: RunningCoordinator, *, custom_data: bool
) -> None:
    directory = coordinator.settings.state_directory
    data = f" --data {directory}" if custom_data else ""
    for line in (
        f"Coordinator: {coordinator.base_url}",
        f"Providers:   {coordinator.ws_url}",
        f"Data:        {directory}",
        *_unusual(coordinator.settings),
        "",
        "Next, in another terminal:",
        f"  darkbloom coordinator key --email you@example.org --credit 5{data}",
        f"  darkbloom serve --coordinator {coordinator.base_url}",
        "Ctrl-C stops it.",
    ):
        invocation.out.print(line)


def _unusual(settings: Settings) -> list[str]:
    """Where money is kept and how it leaves, for those who chose."""
    lines = []
    if settings.database is not None:
        shown = parse_url(settings.database).render_as_string(hide_password=True)
        lines.append(f"Ledger:      {shown}")
    rail = settings.payouts.rail
    if rail != "sandbox":
        lines.append(f"Payouts:     {'none' if rail == 'off' else rail}")
    if rail == "stripe" and settings.payouts.stripe_webhook_secret is None:
        lines.append("             No webhook secret: payouts are asked about, hours later.")
    if rail == "stripe" and settings.payouts.stripe_checkout_secret is None:
        lines.append("             No checkout webhook secret: credit is given when payers return.")
    return lines


def _operator_key(path: Path | None) -> Secret | None:
    if path is None:
        return None
    text = read_text(path).strip()
    if not text:
        raise UsageError(f"The key file {path} is empty", next_step=_NEW_ADMIN_KEY)
    if len(text) < MIN_ADMIN_KEY_CHARACTERS:
        raise UsageError(
            f"The key in {path} is too short to be safe",
            why=f"it has fewer than {MIN_ADMIN_KEY_CHARACTERS} characters",
            next_step=_NEW_ADMIN_KEY,
        )
    return Secret(text)


def _kept(directory: Path, name: str) -> Path | None:
    file = directory / name
    return file if file.exists() else None


def _rate(per_second: float) -> Rate:
    burst = max(Rates().consumer.burst, math.ceil(per_second))
    return Rate(per_second, burst) if per_second else UNLIMITED
