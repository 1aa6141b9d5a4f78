from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from darkbloom_provider.host.launchd import LaunchdService
from darkbloom_provider.host.managers import service_manager
from darkbloom_provider.host.service import (
    DRAIN_DEADLINE_S,
    EXIT_TIMEOUT_S,
    daemon_pid,
    specification,
    wait_until,
)
from darkbloom_provider.host.systemd import SystemdService
from darkbloom_provider.paths import Home


def test_the_service_carries_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    home = Home(tmp_path)
    plain = specification(home, {"PATH": "/bin", "LD_PRELOAD": "x"})
    assert plain.environment == {}
    assert plain.arguments == (sys.executable, "-I", "-m", "darkbloom_provider", "serve")
    assert plain.log_file == home.log_file
    settings = tmp_path / "p.toml"
    settings.touch()
    named = specification(
        home, {"DARKBLOOM_HOME": str(tmp_path), "DARKBLOOM_CONFIG": str(settings)}
    )
    assert named.environment == {
        "DARKBLOOM_HOME": str(tmp_path),
        "DARKBLOOM_CONFIG": str(settings),
    }


def test_settings_named_on_the_command_line_reach_the_service(tmp_path: Path) -> None:
    spec = specification(
        Home(tmp_path), {"DARKBLOOM_CONFIG": "/etc/p.toml"}, config=Path("relative.toml")
    )
    assert spec.environment == {"DARKBLOOM_CONFIG": str(Path.cwd() / "relative.toml")}


def test_the_system_waits_longer_than_the_drain() -> None:
    assert EXIT_TIMEOUT_S > DRAIN_DEADLINE_S


def test_each_system_has_its_manager(tmp_path: Path) -> None:
    mac = service_manager({}, platform="darwin", user_home=tmp_path)
    assert isinstance(mac, LaunchdService)
    assert mac.file == tmp_path / "Library/LaunchAgents/io.darkbloom.provider.plist"
    linux = service_manager({}, platform="linux", user_home=tmp_path)
    assert isinstance(linux, SystemdService)
    assert linux.file == tmp_path / ".config/systemd/user/io.darkbloom.provider.service"
    moved = service_manager({"XDG_CONFIG_HOME": "/x"}, platform="linux", user_home=tmp_path)
    assert moved.file == Path("/x/systemd/user/io.darkbloom.provider.service")


def test_waiting_ends_at_the_deadline() -> None:
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    assert not wait_until(lambda: False, 1.0, sleep=sleep, clock=lambda: now[0])
    assert sum(slept) == pytest.approx(1.0)
    assert wait_until(lambda: now[0] >= 2, 5, sleep=sleep, clock=lambda: now[0])
    assert wait_until(lambda: True, 0, sleep=sleep, clock=lambda: now[0])


def test_a_daemon_is_known_by_its_lock_not_by_its_file(tmp_path: Path) -> None:
    pid_file = tmp_path / "provider.pid"
    assert daemon_pid(pid_file) is None
    pid_file.write_text("4242\n")
    assert daemon_pid(pid_file) is None, "left behind by a crash"
    holder = os.open(pid_file, os.O_RDWR)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert daemon_pid(pid_file) == 4242
        os.ftruncate(holder, 0)
        assert daemon_pid(pid_file) == 0, "it has not written its pid yet"
    finally:
        os.close(holder)
    assert daemon_pid(pid_file) is None
