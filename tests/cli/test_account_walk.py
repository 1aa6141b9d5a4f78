"""Login, earnings and logout as an owner types them, against the embedded coordinator itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from darkbloom_provider.coordinator import device_login
from darkbloom_provider.coordinator.server import RunningCoordinator, running_coordinator
from darkbloom_provider.coordinator.settings import Settings
from darkbloom_provider.models.catalogue import Catalogue
from support.processes import environment


async def test_an_owner_links_looks_and_logs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The least a client polls at, so that the walk does not wait the documented five seconds.
    monkeypatch.setattr(device_login, "POLL_INTERVAL_S", 1)
    home = tmp_path / "home"
    env = {**environment(home), "PYTHONUNBUFFERED": "1"}
    settings = Settings(state_directory=tmp_path / "coordinator", port=0)
    async with running_coordinator(settings, Catalogue.builtin()) as coordinator:

        async def run(*arguments: str) -> tuple[int, str]:
            process = await _start(env, *arguments, "--coordinator", coordinator.base_url)
            out, _ = await process.communicate()
            assert process.returncode is not None
            return process.returncode, out.decode()

        assert await _log_in(coordinator, env) == 0
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
        assert await _log_in(coordinator, env) == 0
        assert (await run("earnings"))[0] == 0


async def _start(env: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "darkbloom_provider",
        *arguments,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=os.path.sep,
    )


async def _log_in(coordinator: RunningCoordinator, env: dict[str, str]) -> int:
    owner, _ = await coordinator.operator.find_or_create_user("owner@test.invalid")
    process = await _start(env, "login", "--coordinator", coordinator.base_url)
    assert process.stdout is not None
    user_code = ""
    while not user_code:
        line = (await process.stdout.readline()).decode()
        assert line, "login ended before it showed a code"
        if "enter the code" in line:
            user_code = line.split()[-1]
    async with httpx.AsyncClient(base_url=coordinator.base_url, trust_env=False) as browser:
        session = coordinator.operator.session_token(owner)
        reply = await browser.post(
            "/v1/device/approve",
            json={"user_code": user_code},
            headers={"Authorization": f"Bearer {session.reveal()}"},
        )
    assert reply.status_code == 200
    await process.stdout.read()
    return await process.wait()
