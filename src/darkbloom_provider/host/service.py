"""The background service that runs the provider now and at every login, whatever the system.

What has to run is a `ServiceSpec`; who runs it is a `ServiceManager`: launchd on macOS
(`host.launchd`), systemd's user manager on Linux (`host.systemd`).
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.host.environment import MODULE
from darkbloom_provider.paths import CONFIG_VARIABLE, HOME_VARIABLE, Home, config_candidates

LABEL: Final = "io.darkbloom.provider"
DRAIN_DEADLINE_S: Final = 120
"""Longest time the provider takes to finish its streams after it is told to stop."""
EXIT_TIMEOUT_S: Final = 150
"""Seconds before the system ends it the hard way. Exceeds the drain deadline."""

POLL_S: Final = 0.25

Sleep = Callable[[float], None]
Clock = Callable[[], float]


class ServiceError(DarkbloomError):
    """The system's service manager refused. The message carries what it said."""


class NoSessionError(ServiceError):
    """There is no login session that a user's service could run in."""


class StillStoppingError(ServiceError):
    """The service was told to stop and has not ended within the time given."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """What has to run."""

    python: str
    """The interpreter, unresolved: inside a virtual environment its path matters."""
    log_file: Path
    environment: Mapping[str, str]
    """Only what differs from the defaults: the shell's environment does not reach a service."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The whole command line."""
        return (self.python, "-I", "-m", MODULE, "serve")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What the system's manager knows."""

    installed: bool
    """Its file is in place, so it starts at the next login."""
    loaded: bool = False
    """The manager knows it in this session."""
    pid: int | None = None
    """The running process, None when it does not run."""
    last_exit_code: int | None = None

    @property
    def running(self) -> bool:
        """Whether its process exists."""
        return self.pid is not None


@dataclass(frozen=True, slots=True)
class Started:
    """What `start` did."""

    already_running: bool
    """It ran before with this very definition; nothing was touched."""
    status: ServiceStatus
    hint: str | None = None
    """Something the owner should know about this machine's manager."""


class ServiceManager(Protocol):
    """Runs the provider in the background. Every method may be repeated without harm."""

    @property
    def name(self) -> str:
        """Who runs it, in the owner's words."""
        ...

    @property
    def file(self) -> Path:
        """The file that makes it start at login."""
        ...

    def status(self) -> ServiceStatus:
        """What is installed and what runs. Asks the manager only if there is reason to."""
        ...

    def install(self, spec: ServiceSpec) -> bool:
        """Write the file; True if it changed."""
        ...

    def start(self, spec: ServiceSpec) -> Started:
        """Install and run it; restart it only if its definition changed.

        Raises:
            NoSessionError: Nobody is logged in that it could run for.
            ServiceError: The manager refused.
        """
        ...

    def stop(self, timeout_s: float) -> bool:
        """End it in an orderly way and wait; True if it was loaded. It returns at the next login.

        Raises:
            StillStoppingError: It has not ended after `timeout_s` seconds.
            ServiceError: The manager refused.
        """
        ...

    def uninstall(self) -> bool:
        """Remove the file, so that it does not come back; True if it was there. Stop it first."""
        ...


def specification(
    home: Home, environ: Mapping[str, str], *, config: Path | None = None, python: str | None = None
) -> ServiceSpec:
    """The provider of this home, with the very settings file that a command here would read.

    Args:
        home: The provider's directory.
        environ: The environment of the command line.
        config: The settings file that the command line names.
        python: The interpreter; this one by default.
    """
    environment = {}
    if environ.get(HOME_VARIABLE):
        environment[HOME_VARIABLE] = str(home.root)
    chosen = config
    if chosen is None and (environ.get(CONFIG_VARIABLE) or environ.get("XDG_CONFIG_HOME")):
        # Neither variable reaches the service by itself; the file they lead to is named instead.
        chosen = next((path for path in config_candidates(environ) if path.exists()), None)
    if chosen is not None:
        environment[CONFIG_VARIABLE] = str(chosen.expanduser().absolute())
    return ServiceSpec(python or sys.executable, home.log_file, environment)


def wait_until(
    done: Callable[[], bool],
    timeout_s: float,
    *,
    sleep: Sleep = time.sleep,
    clock: Clock = time.monotonic,
) -> bool:
    """Ask again and again until `done()`; False if it is not after `timeout_s` seconds."""
    deadline = clock() + timeout_s
    while not done():
        if clock() >= deadline:
            return False
        sleep(POLL_S)
    return True


def daemon_pid(pid_file: Path) -> int | None:
    """The pid of the daemon that holds `pid_file` locked, None if there is none.

    The lock says whether it lives, so a file left behind by a crash means nothing. 0 stands for a
    daemon that has not written its pid yet.
    """
    try:
        descriptor = os.open(pid_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None
