"""The provider as a systemd user unit: `~/.config/systemd/user/io.darkbloom.provider.service`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

from darkbloom_provider.host.command import Answer, Ask
from darkbloom_provider.host.service import (
    EXIT_TIMEOUT_S,
    LABEL,
    Clock,
    NoSessionError,
    ServiceError,
    ServiceSpec,
    ServiceStatus,
    Sleep,
    Started,
    StillStoppingError,
    wait_until,
)
from darkbloom_provider.paths import private_directory

UNIT: Final = f"{LABEL}.service"

_NO_MANAGER: Final = re.compile(
    r"Failed to connect to (?:user scope )?bus|not been booted with systemd|"
    r"No medium found|XDG_RUNTIME_DIR.* not set|Host is down"
)
_RUNNING: Final = frozenset({"active", "activating", "deactivating", "reloading"})

_TEMPLATE: Final = """\
# Written by `darkbloom start`; changes are overwritten. See systemd.service(5).
[Unit]
Description=Darkbloom provider

[Service]
Type=exec
ExecStart={command}
{environment}StandardOutput=append:{log}
StandardError=append:{log}
# Again after a crash; not after an orderly end, a wrong setting (2) or a rejected token (4).
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 4
# Exceeds the drain deadline, so that no stream is cut.
TimeoutStopSec={exit_timeout}
KillMode=mixed
UMask=0077
LimitCORE=0
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def render(spec: ServiceSpec) -> str:
    """The unit file for `spec`."""
    environment = "".join(
        f"Environment={quoted(f'{name}={value}', dollars=False)}\n"
        for name, value in spec.environment.items()
    )
    return _TEMPLATE.format(
        command=" ".join(quoted(word) for word in spec.arguments),
        environment=environment,
        log=str(spec.log_file).replace("%", "%%"),
        exit_timeout=EXIT_TIMEOUT_S,
    )


def quoted(word: str, *, dollars: bool = True) -> str:
    r"""One word of a unit file, whatever is in it (systemd.syntax(7), systemd.service(5)).

    >>> quoted('/home/a b/"x"/50%')
    '"/home/a b/\\"x\\"/50%%"'
    """
    text = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text.replace("$", "$$") if dollars else text}"'


def parse_show(text: str, *, installed: bool) -> ServiceStatus:
    """The status from `systemctl show --property=…`, one `Name=value` a line."""
    said = dict(line.partition("=")[::2] for line in text.splitlines())
    pid = _number(said.get("MainPID"))
    return ServiceStatus(
        installed,
        loaded=said.get("ActiveState") in _RUNNING,
        pid=pid or None,
        last_exit_code=None if pid else _number(said.get("ExecMainStatus")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,10}", text) else None


class SystemdService:
    """`ServiceManager` of Linux.

    Args:
        units: `~/.config/systemd/user`.
        ask: Runs `systemctl` and `loginctl`.
        sleep: Waits between two questions.
        clock: Seconds that only grow.
    """

    name = "systemd"

    def __init__(
        self, units: Path, ask: Ask, *, sleep: Sleep = time.sleep, clock: Clock = time.monotonic
    ) -> None:
        self.file = units / UNIT
        self._ask = ask
        self._sleep = sleep
        self._clock = clock

    def status(self) -> ServiceStatus:
        """What is installed and what runs."""
        # Without its file systemd cannot know the unit: no need for a manager that may not exist.
        if not self.file.exists():
            return ServiceStatus(installed=False)
        properties = "--property=ActiveState,MainPID,ExecMainStatus"
        return parse_show(self._systemctl("show", UNIT, properties).out, installed=True)

    def install(self, spec: ServiceSpec) -> bool:
        """Write the unit and make room for the log; True if the unit changed."""
        content = render(spec)
        private_directory(spec.log_file.parent)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self.file.read_text(encoding="utf-8") == content:
                return False
        except FileNotFoundError:
            pass
        self.file.write_text(content, encoding="utf-8")
        return True

    def start(self, spec: ServiceSpec) -> Started:
        """Install, enable and start the unit; see `ServiceManager.start`."""
        # First a question that fails where there is no manager, before anything is written.
        self._done(self._systemctl("show-environment"), "reached")
        before = self.status()
        changed = self.install(spec)
        if before.running and not changed:
            return Started(already_running=True, status=before, hint=self._hint())
        self._done(self._systemctl("daemon-reload"), "read")
        self._done(self._systemctl("enable", UNIT), "enabled")
        self._done(self._systemctl("restart" if before.running else "start", UNIT), "started")
        return Started(already_running=False, status=self.status(), hint=self._hint())

    def stop(self, timeout_s: float) -> bool:
        """Stop the unit and wait; see `ServiceManager.stop`."""
        before = self.status()
        if not before.loaded:
            return False
        self._done(self._systemctl("stop", "--no-block", UNIT), "stopped")
        if not wait_until(self._gone, timeout_s, sleep=self._sleep, clock=self._clock):
            raise StillStoppingError(
                f"The provider is still finishing its requests after {timeout_s:g} s",
                why=f"systemd ends it {EXIT_TIMEOUT_S} s after it was told to stop",
                next_step="darkbloom status",
            )
        return True

    def uninstall(self) -> bool:
        """Disable and remove the unit; True if it was there."""
        if not self.file.exists():
            return False
        self._systemctl("disable", UNIT)
        self.file.unlink(missing_ok=True)
        self._systemctl("daemon-reload")
        return True

    def _gone(self) -> bool:
        answer = self._systemctl("show", UNIT, "--property=ActiveState")
        return answer.ok and not parse_show(answer.out, installed=True).loaded

    def _hint(self) -> str | None:
        answer = self._ask("loginctl", "show-user", "--property=Linger", "--value")
        if answer.ok and answer.out.strip() == "no":
            return "It ends when you log out. To keep it running: loginctl enable-linger"
        return None

    def _systemctl(self, *arguments: str) -> Answer:
        return self._ask("systemctl", "--user", *arguments)

    def _done(self, answer: Answer, what: str) -> None:
        if answer.ok:
            return
        said = (answer.err.strip() or answer.out.strip() or "no reason given").splitlines()[0]
        if answer.missing or _NO_MANAGER.search(answer.err + answer.out):
            raise NoSessionError(
                "There is no systemd session to run the provider in",
                why=f"this looks like a container or a bare shell ({said})",
                next_step="darkbloom serve",
            )
        raise ServiceError(
            f"The provider's unit could not be {what}",
            why=said,
            next_step=f"systemctl --user status {UNIT}",
        )
