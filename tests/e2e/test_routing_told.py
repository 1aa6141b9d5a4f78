"""A real daemon that gets no work from a real coordinator, and an owner who looks why."""

from __future__ import annotations

import asyncio
from pathlib import Path

from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.errors import UnreachableError
from support.network import network
from support.processes import darkbloom, running, until
from support.provider_home import provider_home


async def test_status_says_why_no_work_comes_and_what_to_do(
    home_root: Path, tiny_model: Path
) -> None:
    state = home_root / "coordinator"
    async with network(state, policy=Policy(min_trust="self_signed")) as net:
        home = provider_home(home_root, net.coordinator.base_url, tiny_model)
        with running("provider", "serve", home=home.root) as provider:
            client = DaemonClient(home.control_socket)

            async def problem() -> bool:
                try:
                    report = await asyncio.to_thread(client.status)
                except UnreachableError:  # it has only just been started
                    return False
                return report.coordinator.last_problem is not None

            await until(problem, "the daemon to know", of=provider)
            shown = await asyncio.to_thread(darkbloom, "status", home=home.root)
            assert "The coordinator sends this machine no work" in shown.stdout
            assert "trust level none is below self_signed" in shown.stdout
            assert "Next: ask the coordinator's operator" in shown.stdout
