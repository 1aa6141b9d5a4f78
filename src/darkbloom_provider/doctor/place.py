"""What is examined: one home, its environment and its settings as far as they can be read."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from darkbloom_provider import config, paths
from darkbloom_provider.config import Config
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.control.models import StatusReport
from darkbloom_provider.errors import ConfigError, DarkbloomError
from darkbloom_provider.host.command import SYSTEM_PATH, Ask, Tools
from darkbloom_provider.paths import Home

TOOL_S: Final = 4.0
"""Seconds that one tool of the system may take."""
DAEMON_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Everything a check may look at."""

    home: Home
    environ: Mapping[str, str]
    config_path: Path | None = None
    coordinator: str | None = None
    """Asked instead of the configured one."""
    platform: str = sys.platform
    ask: Ask = field(default_factory=lambda: Tools(timeout_s=TOOL_S))

    @property
    def search_path(self) -> str:
        """The owner's PATH."""
        return self.environ.get("PATH", SYSTEM_PATH)

    @property
    def settings_files(self) -> list[Path]:
        """Where settings are looked for; the first that exists counts."""
        named = self.config_path
        return paths.config_candidates(self.environ) if named is None else [named]

    def settings(self) -> Config:
        """The checked settings.

        Raises:
            ConfigError: They are wrong.
        """
        return config.load(self.environ, self.config_path)

    def base_url(self) -> str | None:
        """The coordinator's address; None if the settings that name it cannot be read."""
        if self.coordinator is not None:
            return self.coordinator
        try:
            return self.settings().coordinator.base_url
        except ConfigError:
            return None

    def daemon(self) -> StatusReport | None:
        """What the daemon says of itself; None if none answers."""
        try:
            return DaemonClient(self.home.control_socket, timeout=DAEMON_S).status()
        except DarkbloomError:
            return None
