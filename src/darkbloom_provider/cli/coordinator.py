"""`darkbloom coordinator`: run a whole network on this machine, and look after its accounts."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from darkbloom_provider import logs
from darkbloom_provider.cli.context import Invocation, pass_invocation
from darkbloom_provider.coordinator import device_login
from darkbloom_provider.coordinator.operator import Operator
from darkbloom_provider.coordinator.server import (
    RunningCoordinator,
    open_state,
    running_coordinator,
)
from darkbloom_provider.coordinator.settings import DEFAULT_PORT, Policy, Settings
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import format_usd, parse_usd

T = TypeVar("T")

data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the ledger and the keys are kept; ~/.darkbloom/coordinator by default.",
)
database_option = click.option(
    "--database",
    metavar="URL",
    envvar="DARKBLOOM_DATABASE",
    show_envvar=True,
    help="The ledger, for example postgresql+psycopg://USER@HOST/NAME; a file in DIR by default.",
)
email_option = click.option("--email", required=True, metavar="ADDRESS", help="The user.")


def _hashes(_ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> frozenset[str]:
    for text in texts:
        if re.fullmatch(r"[0-9a-f]{64}", text) is None:
            # One that matches nothing would keep every provider out without a word.
            raise click.BadParameter(f"{text!r} is not 64 hex digits, lower case", param=option)
    return frozenset(texts)


@click.group("coordinator")
def command() -> None:
    """Run a whole network on this machine: for tests, and for a private network of Macs."""


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
    help="File with the operator's key. Needed to listen for other machines.",
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
) -> None:
    """Run a coordinator in this terminal until Ctrl-C.

    Its ledger is kept. A second Ctrl-C cuts it off at once; nothing is lost even then.
    """
    settings = Settings(
        state_directory=data or invocation.home.coordinator,
        host=host,
        port=port,
        database=database,
        admin_key=_admin_key(admin_key_file),
        policy=Policy(
            fee_percent=fee_percent,
            max_requests=max_requests,
            accepted_python_hashes=python_hashes,
            accepted_runtime_hashes=runtime_hashes,
        ),
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


def _announce(
    invocation: Invocation, coordinator: RunningCoordinator, *, custom_data: bool
) -> None:
    directory = coordinator.settings.state_directory
    data = f" --data {directory}" if custom_data else ""
    for line in (
        f"Coordinator: {coordinator.base_url}",
        f"Providers:   {coordinator.ws_url}",
        f"Data:        {directory}",
        "",
        "Next, in another terminal:",
        f"  darkbloom coordinator key --email you@example.org --credit 5{data}",
        f"  darkbloom serve --coordinator {coordinator.base_url}",
        "Ctrl-C stops it.",
    ):
        invocation.out.print(line)


@command.command("key")
@email_option
@click.option("--credit", metavar="USD", help="Credit to give, for example 5 or 0.25.")
@data_option
@database_option
@pass_invocation
def key(
    invocation: Invocation,
    *,
    email: str,
    credit: str | None,
    data: Path | None,
    database: str | None,
) -> None:
    """Make an API key for a user of this network, and the user if need be.

    Works while the coordinator runs. The key is shown once.
    """
    micro_usd = 0 if credit is None else _credit(credit)

    async def make(operator: Operator) -> tuple[str, bool, Secret, int]:
        account, new = await operator.find_or_create_user(email)
        secret = await operator.create_api_key(account)
        if micro_usd:
            await operator.credit(account, micro_usd)
        return account, new, secret, (await operator.balance(account)).balance

    account, new, secret, balance = _operate(invocation, data, database, make)
    for line in (
        f"{'New user' if new else 'User'}: {email} (account {account})",
        f"Balance:  {format_usd(balance)}",
        f"API key:  {secret.reveal()}",
        "Keep the key: it is not shown again.",
    ):
        invocation.out.print(line)


@command.command("approve")
@click.argument("user_code")
@email_option
@data_option
@database_option
@pass_invocation
def approve(
    invocation: Invocation,
    *,
    user_code: str,
    email: str,
    data: Path | None,
    database: str | None,
) -> None:
    """Approve the code that `darkbloom login` shows on another machine.

    From its next connection on, that machine earns for the user.
    """

    async def link(operator: Operator) -> bool:
        account, new = await operator.find_or_create_user(email)
        now = operator.sources.now()
        await operator.database.write(
            lambda c: device_login.approve(c, user_code, account_id=account, now=now)
        )
        return new

    new = _operate(invocation, data, database, link)
    invocation.out.print(
        f"Approved: the machine now belongs to {'new ' if new else ''}user {email}."
    )


def _operate(
    invocation: Invocation,
    data: Path | None,
    database: str | None,
    work: Callable[[Operator], Awaitable[T]],
) -> T:
    settings = Settings(state_directory=data or invocation.home.coordinator, database=database)
    sources = Sources()

    async def run() -> T:
        async with open_state(settings, sources, beside_server=True) as (opened, identity):
            return await work(Operator(opened, identity, sources))

    return asyncio.run(run())


def _credit(text: str) -> int:
    try:
        micro_usd = parse_usd(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is {error}", param_hint="--credit") from None
    if micro_usd < 0:
        raise click.BadParameter("credit cannot be negative", param_hint="--credit")
    return micro_usd


def _admin_key(path: Path | None) -> Secret | None:
    if path is None:
        return None
    text = _read(path).strip()
    if not text:
        raise UsageError(
            f"The admin key file {path} is empty",
            next_step="put a long random text into it, for example: openssl rand -hex 32",
        )
    return Secret(text)


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
