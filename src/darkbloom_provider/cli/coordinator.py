"""`darkbloom coordinator`: run a whole network on this machine, and look after its accounts."""

from __future__ import annotations

import asyncio
import math
import re
import signal
from datetime import timedelta
from pathlib import Path
from typing import get_args

import click

from darkbloom_provider import logs
from darkbloom_provider.cli import coordinator_accounts, coordinator_ledger
from darkbloom_provider.cli.context import Invocation, pass_invocation
from darkbloom_provider.cli.coordinator_state import data_option, database_option
from darkbloom_provider.coordinator.payouts.stripe_secrets import stripe_secret
from darkbloom_provider.coordinator.server import (
    ADMIN_KEY_FILE,
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
)
from darkbloom_provider.coordinator.storage import parse_url
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue

_NEW_ADMIN_KEY = "put a long random text into it, for example: openssl rand -hex 32"


def _hashes(_ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> frozenset[str]:
    for text in texts:
        if re.fullmatch(r"[0-9a-f]{64}", text) is None:
            # One that matches nothing would keep every provider out without a word.
            raise click.BadParameter(f"{text!r} is not 64 hex digits, lower case", param=option)
    return frozenset(texts)


def _web_address(_ctx: click.Context, option: click.Parameter, text: str | None) -> str | None:
    # Only an origin: cookies, forms and links are made for the whole of one.
    if text is not None and re.fullmatch(r"https?://[^/?#\s@]+/?", text) is None:
        raise click.BadParameter(f"{text!r} is not like https://console.example.org", param=option)
    return text


@click.group("coordinator")
def command() -> None:
    """Run a whole network on this machine: for tests, and for a private network of Macs."""


for _command in (*coordinator_accounts.COMMANDS, *coordinator_ledger.COMMANDS):
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
@click.option(
    "--catalog",
    "--catalogue",
    "catalogue",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Models and prices (TOML) instead of the built-in ones.",
)
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
    callback=_hashes,
    help="Take only providers with this interpreter (see `darkbloom runtime hash`); repeatable.",
)
@click.option(
    "--runtime-hash",
    "runtime_hashes",
    multiple=True,
    metavar="HASH",
    callback=_hashes,
    help="Take only providers with this runtime; may be repeated.",
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
    callback=_web_address,
    help="Where browsers find the console, if not at its own address, as behind a proxy with TLS.",
)
@pass_invocation
def serve(
    invocation: Invocation,
    *,
    host: str,
    port: int,
    data: Path | None,
    database: str | None,
    catalogue: Path | None,
    admin_key_file: Path | None,
    fee_percent: int,
    max_requests: int | None,
    python_hashes: frozenset[str],
    runtime_hashes: frozenset[str],
    sign_up: SignUp,
    rate_limit: float,
    sealed_requests: bool,
    payouts: RailName,
    sandbox_delay: float,
    console_url: str | None,
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
        admin_key=_admin_key(admin_key_file or _made_by_init(directory)),
        policy=Policy(
            fee_percent=fee_percent,
            max_requests=max_requests,
            sign_up=sign_up,
            accepted_python_hashes=python_hashes,
            accepted_runtime_hashes=runtime_hashes,
        ),
        payouts=_payouts(invocation, directory, payouts, sandbox_delay),
        rates=Rates(consumer=_rate(rate_limit)),
        console_url=console_url,
        sealed_requests=sealed_requests,
    )
    models = Catalogue.builtin() if catalogue is None else _catalogue(catalogue)
    logs.configure(verbose=invocation.verbose)
    asyncio.run(_serve(invocation, settings, models, custom_data=data is not None))


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
    return lines


def _admin_key(path: Path | None) -> Secret | None:
    if path is None:
        return None
    text = _read(path).strip()
    if not text:
        raise UsageError(f"The admin key file {path} is empty", next_step=_NEW_ADMIN_KEY)
    if len(text) < MIN_ADMIN_KEY_CHARACTERS:
        raise UsageError(
            f"The admin key in {path} is too short to be safe",
            why=f"it has fewer than {MIN_ADMIN_KEY_CHARACTERS} characters",
            next_step=_NEW_ADMIN_KEY,
        )
    return Secret(text)


def _made_by_init(directory: Path) -> Path | None:
    file = directory / ADMIN_KEY_FILE
    return file if file.exists() else None


def _rate(per_second: float) -> Rate:
    burst = max(Rates().consumer.burst, math.ceil(per_second))
    return Rate(per_second, burst) if per_second else UNLIMITED


def _catalogue(path: Path) -> Catalogue:
    return Catalogue.parse(_read(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read",
            why=getattr(error, "strerror", None) or "it is not UTF-8 text",
            next_step="check the path and its permissions",
        ) from error
