"""What a daemon is told to do, and where it finds itself."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from darkbloom_provider.config import Config
from darkbloom_provider.logs import Secret
from darkbloom_provider.paths import Home


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """Where programs on this machine are served."""

    port: int
    """On loopback; 0 takes a free one."""
    key: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What the owner asked this daemon to do."""

    home: Home
    config: Config
    models: tuple[str, ...] = ()
    """Ids named on the command line; empty means what the settings say."""
    all_models: bool = False
    local: LocalEndpoint | None = None
    """If set, programs on this machine are served, and no coordinator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Time and identity of the process."""

    pid: int
    now: Callable[[], dt.datetime]
    clock: Callable[[], float]
    """The link's clock, in seconds."""
    start_micros: int = 0
    """When the system started the process, in microseconds since 1970; 0 if unknown."""
