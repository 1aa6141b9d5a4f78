"""`darkbloom stop`: end the background provider without cutting a stream."""

from __future__ import annotations

import click

from darkbloom_provider.cli.context import Invocation, pass_invocation
from darkbloom_provider.host.managers import service_manager
from darkbloom_provider.host.service import EXIT_TIMEOUT_S, daemon_pid


@click.command("stop")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=float(EXIT_TIMEOUT_S),
    show_default=True,
    metavar="S",
    help="Seconds to wait while it finishes its requests.",
)
@click.option("--uninstall", is_flag=True, help="Do not start it at login any more.")
@pass_invocation
def command(invocation: Invocation, *, timeout_s: float, uninstall: bool) -> None:
    """Stop the background provider. It finishes what it is answering first."""
    manager = service_manager(invocation.environ)
    stopped = manager.stop(timeout_s)
    removed = manager.uninstall() if uninstall else False
    foreground = daemon_pid(invocation.home.pid_file)
    say = invocation.out.print
    if stopped:
        say("The provider has stopped.")
    elif foreground is None:
        say("The provider was not running.")
    if removed:
        say(f"It will not start at login any more: {manager.file} was removed.")
    elif manager.file.exists():
        say("It starts again at the next login, or with: darkbloom start")
        say("To keep it from starting at login: darkbloom stop --uninstall")
    if foreground is not None:
        say(f"A provider runs in a terminal (pid {foreground}). Press Ctrl-C there to stop it.")
