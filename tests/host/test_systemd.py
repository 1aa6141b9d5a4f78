from __future__ import annotations

import configparser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.host import systemd
from darkbloom_provider.host.command import Tools
from darkbloom_provider.host.service import (
    DRAIN_DEADLINE_S,
    NoSessionError,
    ServiceError,
    ServiceSpec,
    StillStoppingError,
)
from darkbloom_provider.host.systemd import UNIT, SystemdService, parse_show, quoted
from support.fake_tool import FakeTool, Said

ACTIVE = Said(out="ActiveState=active\nMainPID=4321\nExecMainStatus=0\n")
DRAINING = Said(out="ActiveState=deactivating\nMainPID=4321\nExecMainStatus=0\n")
INACTIVE = Said(out="ActiveState=inactive\nMainPID=0\nExecMainStatus=0\n")
FAILED = Said(out="ActiveState=failed\nMainPID=0\nExecMainStatus=2\n")


class Linux:
    def __init__(self, root: Path) -> None:
        (root / "bin").mkdir()
        self.systemctl = FakeTool(root / "bin", "systemctl")
        self.loginctl = FakeTool(root / "bin", "loginctl")
        self.systemctl.answer("--user show-environment", Said(out="PATH=/bin\n"))
        self.now = 0.0
        self.service = SystemdService(
            root / "config" / "systemd" / "user",
            Tools(str(root / "bin")),
            sleep=self.sleep,
            clock=lambda: self.now,
        )
        self.spec = ServiceSpec("/venv/bin/python", root / "home" / "provider.log", {})

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def linux(tmp_path: Path) -> Linux:
    return Linux(tmp_path)


def test_the_unit_says_what_systemd_needs(linux: Linux) -> None:
    linux.service.install(linux.spec)
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser documents
    unit.read_string(linux.service.file.read_text())
    service = unit["Service"]
    assert service["ExecStart"] == '"/venv/bin/python" "-I" "-m" "darkbloom_provider" "serve"'
    assert service["Restart"] == "on-failure"
    assert "2" in service["RestartPreventExitStatus"].split(), "a wrong setting must not loop"
    assert int(service["TimeoutStopSec"]) > DRAIN_DEADLINE_S
    assert service["StandardOutput"] == f"append:{linux.spec.log_file}"
    assert service["LimitCORE"] == "0"
    assert "Environment" not in service
    assert unit["Install"]["WantedBy"] == "default.target"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("/a b", '"/a b"'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("50%", '"50%%"'),
        ("$HOME", '"$$HOME"'),
        ("&<", '"&<"'),
    ],
)
def test_words_are_quoted_for_systemd(word: str, text: str) -> None:
    assert quoted(word) == text


def test_an_environment_keeps_its_dollars_and_doubles_its_percents() -> None:
    spec = ServiceSpec("python", Path("/l%g"), {"DARKBLOOM_HOME": "/a $b 5%"})
    unit = systemd.render(spec)
    assert 'Environment="DARKBLOOM_HOME=/a $b 5%%"\n' in unit
    assert "StandardError=append:/l%%g\n" in unit


def test_a_first_start_installs_enables_and_starts(linux: Linux) -> None:
    linux.systemctl.answer("--user show io", ACTIVE)
    linux.loginctl.answer("show-user", Said(out="no\n"))
    started = linux.service.start(linux.spec)
    assert not started.already_running
    assert started.status.pid == 4321
    assert started.hint is not None
    assert "enable-linger" in started.hint
    assert linux.systemctl.verbs() == [
        "show-environment",
        "daemon-reload",
        "enable",
        "start",
        "show",
    ]
    assert linux.systemctl.calls()[3] == ["--user", "start", UNIT]


def test_starting_twice_touches_nothing(linux: Linux) -> None:
    linux.systemctl.answer("--user show io", ACTIVE)
    linux.loginctl.answer("show-user", Said(out="yes\n"))
    linux.service.start(linux.spec)
    again = linux.service.start(linux.spec)
    assert again.already_running
    assert again.hint is None
    assert linux.systemctl.verbs().count("start") == 1
    assert "restart" not in linux.systemctl.verbs()


def test_a_changed_definition_restarts(linux: Linux) -> None:
    linux.systemctl.answer("--user show io", ACTIVE)
    linux.service.install(ServiceSpec("/old/python", linux.spec.log_file, {}))
    linux.service.start(linux.spec)
    assert "restart" in linux.systemctl.verbs()


@pytest.mark.parametrize(
    "words",
    [
        "Failed to connect to bus: No medium found\n",
        "System has not been booted with systemd as init system (PID 1). Can't operate.\n",
        "Failed to connect to user scope bus via local transport: $XDG_RUNTIME_DIR not defined\n",
    ],
)
def test_without_a_manager_nothing_is_written_and_serve_is_named(
    tmp_path: Path, words: str
) -> None:
    (tmp_path / "bin").mkdir()
    FakeTool(tmp_path / "bin", "systemctl").answer("--user", Said(1, err=words))
    service = SystemdService(tmp_path / "units", Tools(str(tmp_path / "bin")))
    with pytest.raises(NoSessionError) as caught:
        service.start(ServiceSpec("python", tmp_path / "home" / "log", {}))
    assert caught.value.next_step == "darkbloom serve"
    assert not service.file.exists()
    assert not (tmp_path / "home").exists()


def test_a_machine_without_systemd_says_the_same(tmp_path: Path) -> None:
    service = SystemdService(tmp_path / "units", Tools(str(tmp_path)))
    with pytest.raises(NoSessionError):
        service.start(ServiceSpec("python", tmp_path / "log", {}))
    assert not service.status().installed
    assert not service.stop(1)
    assert not service.uninstall()


def test_a_refusal_carries_what_systemd_said(linux: Linux) -> None:
    linux.systemctl.answer("--user start", Said(1, err="Job failed. See journal.\n"))
    with pytest.raises(ServiceError, match="could not be started") as caught:
        linux.service.start(linux.spec)
    assert caught.value.why == "Job failed. See journal."


def test_stopping_waits_for_the_drain(linux: Linux) -> None:
    linux.service.install(linux.spec)
    linux.systemctl.answer("--user show io", ACTIVE, DRAINING, DRAINING, INACTIVE)
    assert linux.service.stop(150)
    assert linux.systemctl.calls()[1] == ["--user", "stop", "--no-block", UNIT]
    assert linux.now > 0


def test_a_drain_that_outlasts_the_timeout_is_said(linux: Linux) -> None:
    linux.service.install(linux.spec)
    linux.systemctl.answer("--user show io", ACTIVE, DRAINING)
    with pytest.raises(StillStoppingError, match="after 1 s"):
        linux.service.stop(1)


def test_stopping_what_does_not_run_is_no_error(linux: Linux) -> None:
    assert not linux.service.stop(1)
    linux.service.install(linux.spec)
    linux.systemctl.answer("--user show io", FAILED)
    assert not linux.service.stop(1)


def test_uninstalling_disables_and_removes(linux: Linux) -> None:
    linux.service.install(linux.spec)
    assert linux.service.uninstall()
    assert linux.systemctl.verbs() == ["disable", "daemon-reload"]
    assert not linux.service.file.exists()
    assert not linux.service.uninstall()


def test_a_failed_unit_shows_its_exit_code() -> None:
    found = parse_show(FAILED.out, installed=True)
    assert (found.running, found.loaded, found.last_exit_code) == (False, False, 2)


@given(st.text())
def test_no_show_output_breaks_the_parser(text: str) -> None:
    parse_show(text, installed=True)
    parse_show(f"MainPID={text}\nExecMainStatus={text}", installed=True)
