"""Fixtures of the link's tests: a coordinator that does what it is told, and links to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from darkbloom_provider.link.socket import SocketLimits
from support.link_rig import Rig, Start
from support.scripted_coordinator import ScriptedCoordinator, scripted_coordinator

LIMITS = SocketLimits(open_timeout_s=5.0, close_timeout_s=0.5)


@pytest.fixture
async def coordinator() -> AsyncIterator[ScriptedCoordinator]:
    """A coordinator that does what it is told."""
    async with scripted_coordinator() as coordinator:
        yield coordinator


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts links that end with the test."""
    rigs: list[Rig] = []

    def start(url: str, **limits: float) -> Rig:
        rig = Rig(url, replace(LIMITS, **limits))  # type: ignore[arg-type]  # names from the test
        rigs.append(rig)
        return rig

    yield start
    for rig in rigs:
        await rig.stop()
