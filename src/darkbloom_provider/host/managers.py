"""Which service manager this machine has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from darkbloom_provider.host.command import SYSTEM_PATH, Tools
from darkbloom_provider.host.launchd import LaunchdService
from darkbloom_provider.host.service import EXIT_TIMEOUT_S, ServiceManager
from darkbloom_provider.host.systemd import SystemdService


def service_manager(
    environ: Mapping[str, str],
    *,
    platform: str = sys.platform,
    user_home: Path | None = None,
    timeout_s: float = EXIT_TIMEOUT_S + 10,
) -> ServiceManager:
    """The manager of this machine: launchd on macOS, systemd's user manager elsewhere.

    Args:
        environ: The user's environment; systemd needs its bus address, both need PATH.
        platform: `sys.platform`.
        user_home: The user's home directory.
        timeout_s: Seconds that one of its tools may take. `launchctl bootout` may wait for the
            provider to drain; who only asks for the status need not wait as long.
    """
    base = user_home or Path.home()
    ask = Tools(environ.get("PATH", SYSTEM_PATH), environ, timeout_s=timeout_s)
    if platform == "darwin":
        return LaunchdService(base / "Library" / "LaunchAgents", ask)
    config = Path(environ.get("XDG_CONFIG_HOME") or base / ".config")
    return SystemdService(config / "systemd" / "user", ask)
