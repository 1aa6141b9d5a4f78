"""The provider as a launchd agent: `~/Library/LaunchAgents/io.darkbloom.provider.plist`.

Written against Apple's launchctl(1) and launchd.plist(5). Known of `launchctl`: `bootout` returns
before the label is free, and a `bootstrap` in that moment fails with error 5 or 37; agents live in
the `gui/UID` domain, which exists only while the user is logged in at the screen (error 125).
"""

from __future__ import annotations

import os
import plistlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

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

TEMPLATE_NAME: Final = f"{LABEL}.plist"
PLIST_MODE: Final = 0o644

_BOOTSTRAP_TRIES: Final = 5
_RETRY_S: Final = 1.0
_NOT_LOADED: Final = frozenset({3, 113})
"""ESRCH from `bootout`, and launchctl's own "could not find service"."""
_TRANSIENT: Final = frozenset({5, 37})
"""EIO and EALREADY: an older copy is still going away."""
_NO_DOMAIN: Final = re.compile(
    r"Could not find domain|Domain does not support specified action|Bootstrap failed: 125"
)


def template() -> dict[str, Any]:
    """The agent's plist before its words in braces are filled in.

    Raises:
        ServiceError: The installation lacks the file.
    """
    package = Path(__file__).parents[1]
    # Inside an installed package, else beside `src` in a checkout.
    for directory in (package / "launchd", package.parents[1] / "launchd"):
        try:
            content = (directory / TEMPLATE_NAME).read_bytes()
        except FileNotFoundError:
            continue
        document: dict[str, Any] = plistlib.loads(content)
        return document
    raise ServiceError(
        f"This installation lacks {TEMPLATE_NAME}",
        next_step="reinstall darkbloom-provider",
    )


def render(document: Mapping[str, Any], spec: ServiceSpec) -> bytes:
    """The plist for `spec`: values are filled in after parsing, so no path can break the XML."""
    words = {"{PYTHON}": spec.python, "{LOG}": str(spec.log_file)}
    filled = {key: _filled(value, words) for key, value in document.items()}
    if spec.environment:
        filled["EnvironmentVariables"] = dict(spec.environment)
    return plistlib.dumps(filled, sort_keys=False)


def parse_print(text: str) -> ServiceStatus:
    """State, pid and exit code from `launchctl print gui/UID/LABEL` of a loaded service.

    Fields of the service itself are indented by one tab; those of its parts by more.
    """
    pid = re.search(r"(?m)^\tpid = (\d+)$", text)
    code = re.search(r"(?m)^\tlast exit code = (\d+)\b", text)
    return ServiceStatus(
        installed=True,
        loaded=True,
        pid=int(pid.group(1)) if pid else None,
        last_exit_code=int(code.group(1)) if code else None,
    )


class LaunchdService:
    """`ServiceManager` of macOS.

    Args:
        agents: `~/Library/LaunchAgents`.
        ask: Runs `launchctl`. Its timeout must exceed `EXIT_TIMEOUT_S`: `bootout` may wait.
        uid: The user that the agent belongs to.
        sleep: Waits between two questions.
        clock: Seconds that only grow.
    """

    name = "launchd"

    def __init__(
        self,
        agents: Path,
        ask: Ask,
        *,
        uid: int | None = None,
        sleep: Sleep = time.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        self.file = agents / TEMPLATE_NAME
        self._ask = ask
        self._domain = f"gui/{os.getuid() if uid is None else uid}"
        self._target = f"{self._domain}/{LABEL}"
        self._sleep = sleep
        self._clock = clock

    def status(self) -> ServiceStatus:
        """What is installed and what runs."""
        answer = self._ask("launchctl", "print", self._target)
        installed = self.file.exists()
        if not answer.ok:
            return ServiceStatus(installed)
        found = parse_print(answer.out)
        return ServiceStatus(installed, found.loaded, found.pid, found.last_exit_code)

    def install(self, spec: ServiceSpec) -> bool:
        """Write the plist and make room for the log; True if the plist changed."""
        content = render(template(), spec)
        private_directory(spec.log_file.parent)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self.file.read_bytes() == content:
                return False
        except FileNotFoundError:
            pass
        _write(self.file, content)
        return True

    def start(self, spec: ServiceSpec) -> Started:
        """Install and load the agent, or start the loaded one; see `ServiceManager.start`."""
        before = self.status()
        changed = self.install(spec)
        if before.running and not changed:
            return Started(already_running=True, status=before)
        if before.loaded and changed:
            self.stop(EXIT_TIMEOUT_S)
        if before.loaded and not changed:
            self._done(self._ask("launchctl", "kickstart", self._target), "started")
        else:
            # An agent that was switched off once stays so, and bootstrap fails, until this.
            self._ask("launchctl", "enable", self._target)
            self._bootstrap()
        return Started(already_running=False, status=self.status())

    def stop(self, timeout_s: float) -> bool:
        """Unload the agent and wait until it is gone; see `ServiceManager.stop`."""
        before = self.status()
        if not before.loaded:
            return False
        answer = self._ask("launchctl", "bootout", self._target)
        # 36 (in progress) and no answer at all mean that it drains: the label tells when it ended.
        if answer.code not in {0, None, 36} | _NOT_LOADED:
            self._done(answer, "stopped")
        if not wait_until(self._gone, timeout_s, sleep=self._sleep, clock=self._clock):
            raise StillStoppingError(
                f"The provider is still finishing its requests after {timeout_s:g} s",
                why=f"launchd ends it {EXIT_TIMEOUT_S} s after it was told to stop",
                next_step="darkbloom status",
            )
        return True

    def uninstall(self) -> bool:
        """Remove the plist; True if it was there."""
        existed = self.file.exists()
        self.file.unlink(missing_ok=True)
        return existed

    def _gone(self) -> bool:
        answer = self._ask("launchctl", "print", self._target)
        # A tool that does not answer proves nothing.
        return answer.code is not None and not answer.ok

    def _bootstrap(self) -> None:
        for attempt in range(1, _BOOTSTRAP_TRIES + 1):
            answer = self._ask("launchctl", "bootstrap", self._domain, str(self.file))
            if answer.code not in _TRANSIENT or attempt == _BOOTSTRAP_TRIES:
                self._done(answer, "loaded")
                return
            self._sleep(_RETRY_S)

    def _done(self, answer: Answer, what: str) -> None:
        if answer.ok:
            return
        said = (answer.err.strip() or answer.out.strip() or "no reason given").splitlines()[0]
        if _NO_DOMAIN.search(answer.err + answer.out):
            raise NoSessionError(
                "launchd has no session for you to run the provider in",
                why=f"agents need a user who is logged in at the screen ({said})",
                next_step="log in at the Mac's screen (or by screen sharing) and run "
                "`darkbloom start` there; over ssh, `darkbloom serve` runs in the terminal",
            )
        raise ServiceError(
            f"The provider's agent could not be {what}",
            why=said,
            next_step=f"plutil -lint {self.file}; launchctl print {self._target}",
        )


def _filled(value: object, words: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return words.get(value, value)
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    return value


def _write(path: Path, content: bytes) -> None:
    # launchd refuses a plist that others can write; LaunchAgents itself is the system's directory,
    # so its mode is left alone.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.chmod(PLIST_MODE)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
