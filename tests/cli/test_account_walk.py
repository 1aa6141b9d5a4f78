"""Login, earnings and logout as an owner types them, against the embedded coordinator itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkbloom_provider.coordinator.accounts import device_login
from darkbloom_provider.coordinator.server import running_coordinator
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.models.catalogue import Catalogue
from support.device_login import log_in, start
from support.processes import environment


async def test_an_owner_links_looks_and_logs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The least a client polls at, so that the walk does not wait the documented five seconds.
    monkeypatch.setattr(device_login, "POLL_INTERVAL_S", 1)
    home = tmp_path / "home"
    env = environment(home)
    settings = Settings(state_directory=tmp_path / "coordinator", port=0)
    async with running_coordinator(settings, Catalogue.builtin()) as coordinator:

        async def run(*arguments: str) -> tuple[int, str]:
            process = await start(env, *arguments, "--coordinator", coordinator.base_url)
            out, _ = await process.communicate()
            assert process.returncode is not None
            return process.returncode, out.decode()

        assert (await log_in(coordinator, env))[0] == 0
        kept = (home / "credentials.json").read_bytes()

        code, shown = await run("earnings")
        assert code == 0
        assert shown == (
            "Darkbloom Earnings\n\nCoordinator: online (0 providers connected)\n\nEarnings:\n"
            "  Balance:       $0.000000\n  Total earned:  $0.000000\n  Jobs served:   0\n"
        )
        code, shown = await run("login")
        assert (code, "already linked to account" in shown) == (0, True)
        code, shown = await run("logout")
        assert (code, "the token was revoked" in shown) == (0, True)

        # A copy of the token from before, as a stolen backup would hold it.
        (home / "credentials.json").write_bytes(kept)
        code, shown = await run("earnings")
        assert (code, "darkbloom login" in shown) == (4, True)
        # The stored token is dead, so login links anew instead of calling the machine linked.
        assert (await log_in(coordinator, env))[0] == 0
        assert (await run("earnings"))[0] == 0
