"""`darkbloom login` as an owner does it: a process that shows a code, and a browser to approve."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping

import httpx

from darkbloom_provider.coordinator.server import RunningCoordinator


async def start(env: Mapping[str, str], *arguments: str) -> asyncio.subprocess.Process:
    """A `darkbloom` process whose output can be read as it comes."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "darkbloom_provider",
        *arguments,
        env={**env, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=os.path.sep,
    )


async def log_in(
    coordinator: RunningCoordinator, env: Mapping[str, str], email: str = "owner@test.invalid"
) -> tuple[int, str]:
    """Log in and have the owner of `email` approve it: the exit code, and what was shown last."""
    owner, _ = await coordinator.operator.find_or_create_user(email)
    process = await start(env, "login", "--coordinator", coordinator.base_url)
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
    shown = (await process.stdout.read()).decode()
    return await process.wait(), shown
