"""`darkbloom serve`: run the provider in this terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import click
from rich.console import Console

from darkbloom_provider import logs
from darkbloom_provider.cli.context import Invocation, coordinator_option, pass_invocation
from darkbloom_provider.cli.status import account_line, posture_line
from darkbloom_provider.config import BackendSection, Config
from darkbloom_provider.control.models import DEFAULT_DRAIN_SECONDS, StatusReport
from darkbloom_provider.daemon.provider import run_provider
from darkbloom_provider.daemon.supervisor import Assignment
from darkbloom_provider.host import privacy


@click.command("serve")
@coordinator_option
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="ID",
    help="Serve this model; may be repeated. See `darkbloom models list`.",
)
@click.option("--all-models", "--all", is_flag=True, help="Serve every model on this machine.")
@click.option(
    "--idle-timeout",
    type=click.IntRange(min=0),
    metavar="MIN",
    help="Unload a model after this many minutes without a request; 0 means never.",
)
@click.option(
    "--timeout",
    "drain_s",
    type=click.FloatRange(min=0),
    default=DEFAULT_DRAIN_SECONDS,
    show_default=True,
    metavar="S",
    help="Seconds that running requests get to finish when told to stop.",
)
@pass_invocation
def command(
    invocation: Invocation,
    *,
    coordinator: str | None,
    models: tuple[str, ...],
    all_models: bool,
    idle_timeout: int | None,
    drain_s: float,
) -> None:
    """Run the provider in this terminal until Ctrl-C.

    The first Ctrl-C lets running requests finish; a second one cuts them.
    """
    # A wrong setting is told before anything changes.
    settings = with_idle_timeout(invocation.config(coordinator=coordinator), idle_timeout)
    privacy.reexec_isolated(_arguments(), invocation.environ)
    logs.configure(verbose=invocation.verbose)
    hardening = privacy.harden()
    for problem in hardening.problems:
        logs.get("serve").warning("not hardened", step=problem)
    assignment = Assignment(
        home=invocation.home, config=settings, models=models, all_models=all_models
    )

    def announce(report: StatusReport) -> None:
        _print_start(invocation.err, report)

    asyncio.run(
        run_provider(
            assignment,
            invocation.environ,
            hardening=hardening,
            on_serving=announce,
            drain_s=drain_s,
        )
    )


def with_idle_timeout(settings: Config, minutes: int | None) -> Config:
    """The settings with `--idle-timeout` applied."""
    if minutes is None:
        return settings
    backend: BackendSection = settings.backend.model_copy(update={"idle_timeout_mins": minutes})
    return settings.model_copy(update={"backend": backend})


def _arguments() -> Sequence[str]:
    # The very words this process was called with: options before the command belong to them.
    return sys.argv[1:]


def _print_start(terminal: Console, report: StatusReport) -> None:
    """Who serves what for whom, once, when everything is loaded."""
    terminal.print()
    terminal.print(f"Darkbloom provider {report.version} (pid {report.pid})")
    terminal.print(f"  Coordinator:  {report.coordinator.url}")
    terminal.print(f"  Account:      {account_line(report.account)}")
    for model in report.models:
        state = "" if model.state == "ready" else f" ({model.state}: {model.detail})"
        terminal.print(f"  Model:        {model.id}{state}")
    terminal.print(f"  Posture:      {posture_line(report.posture)}")
    for warning in report.warnings:
        terminal.print(f"  Note:         {warning}")
    terminal.print()
