from __future__ import annotations

import fcntl
import os
import plistlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from darkbloom_provider.cli import start, stop
from darkbloom_provider.cli.context import Invocation
from darkbloom_provider.errors import AlreadyRunningError, ConfigError, DarkbloomError
from darkbloom_provider.host import managers
from darkbloom_provider.host.service import ServiceManager
from darkbloom_provider.paths import Home
from support.fake_tool import FakeTool, Said
from support.macos_outputs import LAUNCHCTL_PRINT_RUNNING

NOT_LOADED = Said(113, err="Could not find service\n")
RUNNING = Said(out=LAUNCHCTL_PRINT_RUNNING)


class Terminal:
    """The two commands on a Mac whose launchctl is a recording."""

    def __init__(self, root: Path) -> None:
        (root / "bin").mkdir()
        self.launchctl = FakeTool(root / "bin", "launchctl")
        self.user = root / "user"
        self.environ = {
            "PATH": str(root / "bin"),
            "HOME": str(self.user),
            "DARKBLOOM_HOME": str(root / "home"),
            "XDG_CONFIG_HOME": str(root / "config"),
        }
        self.home = Home(root / "home")
        self.config = root / "config" / "darkbloom" / "provider.toml"

    @property
    def plist(self) -> Path:
        return self.user / "Library/LaunchAgents/io.darkbloom.provider.plist"

    def type(self, name: str, *arguments: str) -> Result:
        command = {"start": start.command, "stop": stop.command}[name]
        return CliRunner().invoke(command, arguments, obj=Invocation(environ=self.environ))


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal(tmp_path)

    def on_a_mac(environ: Mapping[str, str]) -> ServiceManager:
        return managers.service_manager(environ, platform="darwin", user_home=terminal.user)

    monkeypatch.setattr(start, "service_manager", on_a_mac)
    monkeypatch.setattr(stop, "service_manager", on_a_mac)
    return terminal


def failure(result: Result) -> DarkbloomError:
    assert isinstance(result.exception, DarkbloomError), result.exception
    return result.exception


def test_start_installs_the_agent_and_says_where_to_look(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", NOT_LOADED, RUNNING)
    result = terminal.type("start")
    assert result.exit_code == 0, result.output
    assert "runs in the background (pid 4321)" in result.output
    assert str(terminal.home.log_file) in result.output
    assert "darkbloom status" in result.output
    assert "wss://api.darkbloom.dev/ws/provider" in result.output
    plist = plistlib.loads(terminal.plist.read_bytes())
    assert plist["ProgramArguments"][0] == sys.executable
    assert plist["EnvironmentVariables"] == {"DARKBLOOM_HOME": str(terminal.home.root)}


def test_start_again_says_that_it_runs_already(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", NOT_LOADED, RUNNING)
    terminal.type("start")
    result = terminal.type("start")
    assert result.exit_code == 0
    assert "already runs" in result.output
    assert terminal.launchctl.verbs().count("bootstrap") == 1


def test_a_wrong_setting_starts_nothing(terminal: Terminal) -> None:
    terminal.config.parent.mkdir(parents=True)
    terminal.config.write_text("[provider]\nnmae = 'typo'\n")
    error = failure(terminal.type("start"))
    assert isinstance(error, ConfigError)
    assert "line 2" in str(error)
    assert terminal.launchctl.calls() == []
    assert not terminal.plist.exists()


def test_the_settings_that_were_checked_are_those_the_agent_reads(terminal: Terminal) -> None:
    # launchd does not hand XDG_CONFIG_HOME over, so the file found through it is named.
    terminal.launchctl.answer("print", NOT_LOADED, RUNNING)
    terminal.config.parent.mkdir(parents=True)
    terminal.config.write_text("[backend]\nmax_model_slots = 1\n")
    assert terminal.type("start").exit_code == 0
    plist = plistlib.loads(terminal.plist.read_bytes())
    assert plist["EnvironmentVariables"]["DARKBLOOM_CONFIG"] == str(terminal.config)


def test_start_beside_a_provider_in_a_terminal_is_refused(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", NOT_LOADED)
    terminal.home.root.mkdir()
    holder = os.open(terminal.home.pid_file, os.O_RDWR | os.O_CREAT)
    try:
        os.write(holder, b"777\n")
        fcntl.flock(holder, fcntl.LOCK_EX)
        error = failure(terminal.type("start"))
        assert isinstance(error, AlreadyRunningError)
        assert "777" in str(error)
        assert "bootstrap" not in terminal.launchctl.verbs()
        told = terminal.type("stop")
        assert told.exit_code == 0
        assert "runs in a terminal (pid 777)" in told.output
        assert "was not running" not in told.output
    finally:
        os.close(holder)


def test_stop_says_that_it_stopped_and_comes_back(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", NOT_LOADED, RUNNING, RUNNING, NOT_LOADED)
    terminal.type("start")
    result = terminal.type("stop")
    assert result.exit_code == 0, result.output
    assert "has stopped" in result.output
    assert "next login" in result.output
    assert "bootout" in terminal.launchctl.verbs()
    assert terminal.plist.exists()


def test_stop_can_remove_it_for_good(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", NOT_LOADED, RUNNING, RUNNING, NOT_LOADED)
    terminal.type("start")
    result = terminal.type("stop", "--uninstall")
    assert "will not start at login" in result.output
    assert not terminal.plist.exists()


def test_stop_without_anything_running_is_fine(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", NOT_LOADED)
    result = terminal.type("stop", "--uninstall")
    assert result.exit_code == 0
    assert result.output.strip() == "The provider was not running."


def test_stop_gives_up_waiting_when_told_to(terminal: Terminal) -> None:
    terminal.launchctl.answer("print", RUNNING)
    error = failure(terminal.type("stop", "--timeout", "0"))
    assert "still finishing" in str(error)
    assert terminal.type("stop", "--timeout", "-1").exit_code == 2
