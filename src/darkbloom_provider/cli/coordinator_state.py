"""What the operator's commands share: which coordinator they mean, and how they answer."""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from darkbloom_provider.cli.context import Invocation, json_option, pass_invocation
from darkbloom_provider.coordinator.operator import Operator
from darkbloom_provider.coordinator.server import open_state
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.errors import UsageError
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import parse_usd

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


def read_text(path: Path) -> str:
    """A file that an operator names.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read",
            why=getattr(error, "strerror", None) or "it is not UTF-8 text",
            next_step="check the path and its permissions",
        ) from error


def _catalogue(_ctx: click.Context, _option: click.Parameter, path: Path | None) -> Catalogue:
    return Catalogue.builtin() if path is None else Catalogue.parse(read_text(path))


catalogue_option = click.option(
    "--catalog",
    "--catalogue",
    "catalogue",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="PATH",
    callback=_catalogue,
    help="Models and prices (TOML) instead of the built-in ones.",
)
email_option = click.option("--email", required=True, metavar="ADDRESS", help="The user.")
password_stdin_option = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line."
)


@dataclass(frozen=True, slots=True)
class Books:
    """A coordinator's state as a command works on it, whether or not the coordinator runs."""

    invocation: Invocation
    data: Path | None
    database: str | None
    as_json: bool

    @property
    def directory(self) -> Path:
        """The coordinator's directory."""
        return self.data or self.invocation.home.coordinator

    def operate(self, work: Callable[[Operator], Awaitable[T]]) -> T:
        """Do something as the operator."""
        settings = Settings(state_directory=self.directory, database=self.database)
        sources = Sources()

        async def run() -> T:
            async with open_state(settings, sources, beside_server=True) as (opened, identity):
                return await work(Operator(opened, identity, sources))

        return asyncio.run(run())

    def show(self, document: Mapping[str, Any], lines: Iterable[str]) -> None:
        """Answer: one JSON object, or lines for people."""
        if self.as_json:
            self.invocation.out.print(json.dumps(document, indent=2, allow_nan=False))
            return
        for line in lines:
            self.invocation.out.print(line)


def on_books(command: Callable[..., None]) -> Callable[..., None]:
    """Options `--data`, `--database` and `--json`; the command is given `Books` first."""

    @json_option
    @database_option
    @data_option
    @pass_invocation
    @functools.wraps(command)
    def wrapped(
        invocation: Invocation,
        /,
        *,
        data: Path | None,
        database: str | None,
        as_json: bool,
        **options: object,
    ) -> None:
        command(Books(invocation, data, database, as_json), **options)

    return wrapped


def amount(text: str, *, option: str) -> int:
    """Micro-USD from what somebody typed.

    Raises:
        click.BadParameter: It is no amount of money of at least 0.
    """
    try:
        micro_usd = parse_usd(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is {error}", param_hint=option) from None
    if micro_usd < 0:
        raise click.BadParameter("credit cannot be negative", param_hint=option)
    return micro_usd


def new_password(*, from_stdin: bool) -> str:
    """A password: a line of standard input, or asked for twice without an echo.

    Raises:
        UsageError: There is no terminal to ask at.
    """
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError(
            "A password is needed, and there is no terminal to ask for it",
            next_step="add --password-stdin and send it as one line of standard input",
        )
    answer: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return answer
