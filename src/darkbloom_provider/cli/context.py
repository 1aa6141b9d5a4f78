"""What every command is given: the environment, the home, the settings and the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console

from darkbloom_provider import config
from darkbloom_provider.paths import Home


def _console(*, stderr: bool = False) -> Console:
    # Money and ids must reach a pipe as they are: no wrapping, no highlighting of numbers.
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False)


@dataclass(slots=True)
class Invocation:
    """One call of the command line."""

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    config_path: Path | None = None
    verbose: bool = False
    out: Console = field(default_factory=_console)
    err: Console = field(default_factory=lambda: _console(stderr=True))

    @property
    def home(self) -> Home:
        """The provider's directory."""
        return Home.from_environment(self.environ)

    def config(self, *, coordinator: str | None = None) -> config.Config:
        """The checked settings, with `--coordinator` applied.

        Raises:
            ConfigError: The file or the address is wrong.
        """
        settings = config.load(self.environ, self.config_path)
        if coordinator is None:
            return settings
        section = config.CoordinatorSection(
            url=self.address(coordinator),
            heartbeat_interval_secs=settings.coordinator.heartbeat_interval_secs,
        )
        return settings.model_copy(update={"coordinator": section}).checked()

    def address(self, coordinator: str) -> str:
        """The websocket address for what `--coordinator` was given.

        Raises:
            click.BadParameter: It is no address.
        """
        try:
            return config.websocket_url(coordinator)
        except ValueError:
            raise click.BadParameter(
                f"{coordinator!r} must look like wss://host/ws/provider or https://host",
                param_hint="--coordinator",
            ) from None


pass_invocation = click.make_pass_decorator(Invocation)

coordinator_option = click.option(
    "--coordinator",
    "--coordinator-url",
    "coordinator",
    metavar="URL",
    help="The coordinator to talk to instead of the configured one.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
