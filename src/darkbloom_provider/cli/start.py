"""`darkbloom start`: the provider in the background, now and at every login."""

from __future__ import annotations

import click

from darkbloom_provider.cli.context import Invocation, pass_invocation
from darkbloom_provider.errors import AlreadyRunningError
from darkbloom_provider.host.managers import service_manager
from darkbloom_provider.host.service import daemon_pid, specification


@click.command("start")
@pass_invocation
def command(invocation: Invocation) -> None:
    """Run the provider in the background, now and at every login."""
    # A wrong setting never means "serve": it is found here, before the system is touched.
    settings = invocation.config()
    home = invocation.home
    manager = service_manager(invocation.environ)
    foreground = daemon_pid(home.pid_file)
    if foreground is not None and not manager.status().running:
        raise AlreadyRunningError(
            "The provider already runs in a terminal",
            why=f"process {foreground} serves this home",
            next_step="press Ctrl-C there, then: darkbloom start",
        )
    spec = specification(home, invocation.environ, config=invocation.config_path)
    started = manager.start(spec)
    pid = f" (pid {started.status.pid})" if started.status.pid else ""
    now = "already runs" if started.already_running else "runs"
    invocation.out.print(f"The provider {now} in the background{pid}, and will at every login.")
    invocation.out.print(f"  Coordinator:  {settings.coordinator.url}")
    invocation.out.print(f"  Log:          {home.log_file}")
    invocation.out.print(f"  Started by:   {manager.name}, {manager.file}")
    invocation.out.print("  Check:        darkbloom status")
    invocation.out.print("  Stop:         darkbloom stop")
    if started.hint:
        invocation.out.print(f"  Note:         {started.hint}")
