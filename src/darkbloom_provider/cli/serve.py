"""`darkbloom serve`: run the provider in this terminal."""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
import sys
from collections.abc import Sequence

import click
from rich.console import Console

from darkbloom_provider import logs
from darkbloom_provider.cli.context import Invocation, coordinator_option, pass_invocation
from darkbloom_provider.cli.phrases import account_line, posture_line
from darkbloom_provider.config import BackendSection, Config
from darkbloom_provider.control.models import DEFAULT_DRAIN_SECONDS, LocalStatus, StatusReport
from darkbloom_provider.daemon.local_server import DEFAULT_PORT, load_or_create_key
from darkbloom_provider.daemon.provider import run_provider
from darkbloom_provider.daemon.supervisor import Assignment, LocalEndpoint
from darkbloom_provider.errors import UsageError
from darkbloom_provider.host import privacy
from darkbloom_provider.paths import Home


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
    "--local",
    is_flag=True,
    help="Serve programs on this machine through an OpenAI endpoint, instead of a coordinator.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help=f"With --local: the port on loopback, 0 for any free one. [default: {DEFAULT_PORT}]",
)
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
    local: bool,
    port: int | None,
    idle_timeout: int | None,
    drain_s: float,
) -> None:
    """Run the provider in this terminal until Ctrl-C.

    The first Ctrl-C lets running requests finish; a second one cuts them.
    """
    _check(local=local, port=port, coordinator=coordinator)
    # A wrong setting is told before anything changes.
    settings = with_idle_timeout(invocation.config(coordinator=coordinator), idle_timeout)
    privacy.reexec_isolated(_arguments(), invocation.environ)
    logs.configure(verbose=invocation.verbose)
    hardening = privacy.harden()
    for problem in hardening.problems:
        logs.get("serve").warning("not hardened", step=problem)
    assignment = Assignment(
        home=invocation.home,
        config=settings,
        models=models,
        all_models=all_models,
        local=_endpoint(invocation.home, port) if local else None,
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


def _check(*, local: bool, port: int | None, coordinator: str | None) -> None:
    """Refuse what would not be obeyed."""
    if local and coordinator is not None:
        raise UsageError(
            "--local and --coordinator exclude each other",
            why="with --local no coordinator is served",
            next_step="leave one of them out",
        )
    if port is not None and not local:
        raise UsageError(
            "--port needs --local",
            why="a provider for a coordinator listens nowhere",
            next_step="leave --port out, or add --local",
        )


def _endpoint(home: Home, port: int | None) -> LocalEndpoint:
    key = load_or_create_key(home.local_key, secrets.token_hex)
    return LocalEndpoint(DEFAULT_PORT if port is None else port, key)


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
    if report.local is None:
        terminal.print(f"  Coordinator:  {report.coordinator.url}")
        terminal.print(f"  Account:      {account_line(report.account)}")
    else:
        terminal.print(f"  Endpoint:     {report.local.url}/v1, for programs on this machine")
        terminal.print(f"  Key:          in {report.local.key_file}")
    for model in report.models:
        state = "" if model.state == "ready" else f" ({model.state}: {model.detail})"
        terminal.print(f"  Model:        {model.id}{state}")
    if report.local is None:
        terminal.print(f"  Posture:      {posture_line(report.posture)}")
    for warning in report.warnings:
        terminal.print(f"  Note:         {warning}")
    if report.local is not None:
        terminal.print("\nTry it:")
        for line in curl_lines(report.local, report.models[0].id):
            terminal.print(f"  {line}")
    terminal.print()


def curl_lines(local: LocalStatus, model: str) -> list[str]:
    """A first request to type. It reads the key: terminals and logs keep what is shown to them."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    return [
        f"curl {local.url}/v1/chat/completions \\",
        f'  -H "Authorization: Bearer $(cat {shlex.quote(local.key_file)})" \\',
        f"  -d {shlex.quote(body)}",
    ]
