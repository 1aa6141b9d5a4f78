from __future__ import annotations

import plistlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.host import launchd
from darkbloom_provider.host.command import Tools
from darkbloom_provider.host.launchd import LaunchdService, parse_print
from darkbloom_provider.host.service import (
    DRAIN_DEADLINE_S,
    NoSessionError,
    ServiceError,
    ServiceSpec,
    StillStoppingError,
)
from support.fake_tool import FakeTool, Said
from support.macos_outputs import LAUNCHCTL_PRINT_CRASHED, LAUNCHCTL_PRINT_RUNNING

TARGET = "gui/501/io.darkbloom.provider"
NOT_LOADED = Said(
    113, err='Could not find service "io.darkbloom.provider" in domain for uid: 501\n'
)
RUNNING = Said(out=LAUNCHCTL_PRINT_RUNNING)
CRASHED = Said(out=LAUNCHCTL_PRINT_CRASHED)


class Mac:
    """A Mac's worth of launchd: the fake tool, the service and a clock that sleeping moves."""

    def __init__(self, root: Path) -> None:
        (root / "bin").mkdir()
        self.launchctl = FakeTool(root / "bin", "launchctl")
        self.now = 0.0
        self.agents = root / "Library" / 'Launch & <Agents> "x"'
        self.service = LaunchdService(
            self.agents,
            Tools(str(root / "bin")),
            uid=501,
            sleep=self.sleep,
            clock=lambda: self.now,
        )
        self.spec = ServiceSpec("/venv/bin/python", root / "home" / "provider.log", {})

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    return Mac(tmp_path)


def test_the_plist_says_what_launchd_needs(mac: Mac) -> None:
    mac.service.install(mac.spec)
    plist = plistlib.loads(mac.service.file.read_bytes())
    assert plist["Label"] == "io.darkbloom.provider"
    assert mac.service.file.name == "io.darkbloom.provider.plist"
    assert plist["ProgramArguments"] == [
        "/venv/bin/python", "-I", "-m", "darkbloom_provider", "serve",
    ]  # fmt: skip
    assert plist["ProgramArguments"] == list(mac.spec.arguments)
    assert plist["RunAtLoad"] is True
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["ThrottleInterval"] >= 10
    assert plist["ExitTimeOut"] > DRAIN_DEADLINE_S
    assert plist["ProcessType"] == "Interactive"
    assert plist["StandardOutPath"] == plist["StandardErrorPath"] == str(mac.spec.log_file)
    assert plist["Umask"] == 0o077
    assert "EnvironmentVariables" not in plist
    assert mac.service.file.stat().st_mode & 0o777 == 0o644
    assert mac.spec.log_file.parent.stat().st_mode & 0o777 == 0o700


XML_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=40
)


@given(XML_TEXT, XML_TEXT, XML_TEXT)
def test_no_path_breaks_the_plist(python: str, log: str, home: str) -> None:
    spec = ServiceSpec(python, Path("/") / log, {"DARKBLOOM_HOME": home})
    plist = plistlib.loads(launchd.render(launchd.template(), spec))
    assert plist["ProgramArguments"][0] == python
    assert plist["StandardOutPath"] == str(spec.log_file)
    assert plist["EnvironmentVariables"] == {"DARKBLOOM_HOME": home}


def test_paths_with_markup_and_spaces_are_kept() -> None:
    spec = ServiceSpec('/Us&rs/<a> "b"/python {LOG}', Path("/l & <g>"), {})
    plist = plistlib.loads(launchd.render(launchd.template(), spec))
    assert plist["ProgramArguments"][0] == '/Us&rs/<a> "b"/python {LOG}'
    assert plist["StandardErrorPath"] == "/l & <g>"


def test_the_template_has_no_blank_left_after_rendering(mac: Mac) -> None:
    rendered = launchd.render(launchd.template(), mac.spec)
    assert b"{" not in rendered


def test_a_first_start_loads_the_agent(mac: Mac) -> None:
    mac.launchctl.answer("print", NOT_LOADED, RUNNING)
    started = mac.service.start(mac.spec)
    assert not started.already_running
    assert started.status.pid == 4321
    assert mac.launchctl.calls() == [
        ["print", TARGET],
        ["enable", TARGET],
        ["bootstrap", "gui/501", str(mac.service.file)],
        ["print", TARGET],
    ]


def test_starting_twice_touches_nothing(mac: Mac) -> None:
    mac.launchctl.answer("print", NOT_LOADED, RUNNING)
    mac.service.start(mac.spec)
    before = mac.service.file.stat().st_mtime_ns
    assert mac.service.start(mac.spec).already_running
    assert mac.launchctl.verbs()[-1] == "print"
    assert mac.launchctl.verbs().count("bootstrap") == 1
    assert mac.service.file.stat().st_mtime_ns == before


def test_a_loaded_agent_that_is_down_is_started_again(mac: Mac) -> None:
    mac.service.install(mac.spec)
    mac.launchctl.answer("print", CRASHED, RUNNING)
    assert not mac.service.start(mac.spec).already_running
    assert ["kickstart", TARGET] in mac.launchctl.calls()
    assert "bootstrap" not in mac.launchctl.verbs()


def test_a_changed_definition_waits_until_the_label_is_free(mac: Mac) -> None:
    mac.service.install(ServiceSpec("/old/python", mac.spec.log_file, {}))
    mac.launchctl.answer("print", RUNNING, RUNNING, RUNNING, RUNNING, NOT_LOADED)
    mac.service.start(mac.spec)
    verbs = mac.launchctl.verbs()
    assert verbs.index("bootout") < verbs.index("bootstrap")
    assert verbs[verbs.index("bootout") + 1 : verbs.index("bootstrap")] == [
        "print", "print", "print", "enable",
    ]  # fmt: skip
    assert mac.now > 0, "it waited between two questions"


def test_a_bootstrap_that_comes_too_early_is_tried_again(mac: Mac) -> None:
    mac.launchctl.answer("print", NOT_LOADED, RUNNING)
    mac.launchctl.answer(
        "bootstrap",
        Said(5, err="Bootstrap failed: 5: Input/output error\n"),
        Said(37, err="Bootstrap failed: 37: Operation already in progress\n"),
        Said(),
    )
    assert mac.service.start(mac.spec).status.running
    assert mac.launchctl.verbs().count("bootstrap") == 3


def test_a_refused_bootstrap_is_a_typed_error_with_what_launchd_said(mac: Mac) -> None:
    mac.launchctl.answer("print", NOT_LOADED)
    mac.launchctl.answer("bootstrap", Said(5, err="Bootstrap failed: 5: Input/output error\n"))
    with pytest.raises(ServiceError, match="could not be loaded") as caught:
        mac.service.start(mac.spec)
    assert caught.value.why == "Bootstrap failed: 5: Input/output error"
    assert "plutil" in (caught.value.next_step or "")
    assert mac.launchctl.verbs().count("bootstrap") == 5


@pytest.mark.parametrize(
    "words",
    [
        "Bootstrap failed: 125: Domain does not support specified action\n",
        "Could not find domain for user gui: 501\n",
    ],
)
def test_without_a_login_session_the_error_says_so(mac: Mac, words: str) -> None:
    mac.launchctl.answer("print", NOT_LOADED)
    mac.launchctl.answer("bootstrap", Said(125, err=words))
    with pytest.raises(NoSessionError, match="no session") as caught:
        mac.service.start(mac.spec)
    assert "log in at the Mac's screen" in (caught.value.next_step or "")
    assert mac.launchctl.verbs().count("bootstrap") == 1


def test_a_machine_without_launchctl_is_a_typed_error(mac: Mac, tmp_path: Path) -> None:
    service = LaunchdService(mac.agents, Tools(str(tmp_path / "empty")), uid=501)
    with pytest.raises(ServiceError):
        service.start(mac.spec)


def test_stopping_waits_for_the_drain(mac: Mac) -> None:
    mac.launchctl.answer("print", RUNNING, RUNNING, RUNNING, NOT_LOADED)
    mac.launchctl.answer(
        "bootout", Said(36, err="Boot-out failed: 36: Operation now in progress\n")
    )
    assert mac.service.stop(150)
    assert mac.launchctl.calls()[1] == ["bootout", TARGET]
    assert mac.launchctl.verbs()[2:] == ["print"] * 3


def test_a_drain_that_outlasts_the_timeout_is_said(mac: Mac) -> None:
    mac.launchctl.answer("print", RUNNING)
    with pytest.raises(StillStoppingError, match="after 2 s"):
        mac.service.stop(2)
    assert mac.now == pytest.approx(2)


def test_stopping_what_does_not_run_is_no_error(mac: Mac) -> None:
    mac.launchctl.answer("print", NOT_LOADED)
    assert not mac.service.stop(150)
    assert mac.launchctl.verbs() == ["print"]


def test_an_agent_that_ends_by_itself_meanwhile_counts_as_stopped(mac: Mac) -> None:
    mac.launchctl.answer("print", RUNNING, NOT_LOADED)
    mac.launchctl.answer("bootout", Said(3, err="Boot-out failed: 3: No such process\n"))
    assert mac.service.stop(150)


def test_a_refused_bootout_is_a_typed_error(mac: Mac) -> None:
    mac.launchctl.answer("print", RUNNING)
    mac.launchctl.answer("bootout", Said(1, err="Boot-out failed: 1: Operation not permitted\n"))
    with pytest.raises(ServiceError, match="could not be stopped"):
        mac.service.stop(150)


def test_uninstalling_removes_the_plist_once(mac: Mac) -> None:
    mac.service.install(mac.spec)
    assert mac.service.uninstall()
    assert not mac.service.file.exists()
    assert not mac.service.uninstall()


def test_print_is_read_at_the_services_own_level() -> None:
    running = parse_print(LAUNCHCTL_PRINT_RUNNING)
    assert (running.pid, running.last_exit_code, running.running) == (4321, None, True)
    crashed = parse_print(LAUNCHCTL_PRINT_CRASHED)
    assert (crashed.pid, crashed.last_exit_code, crashed.running) == (None, 78, False)


@given(st.text())
def test_no_print_output_breaks_the_parser(text: str) -> None:
    assert parse_print(text).loaded
