from __future__ import annotations

import dataclasses
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from darkbloom_provider.doctor import own
from darkbloom_provider.doctor.checkup import repair
from darkbloom_provider.doctor.finding import Finding, Repair, Verdict, examine, wrong
from darkbloom_provider.doctor.place import Place
from darkbloom_provider.host.service import LABEL
from darkbloom_provider.paths import Home
from support.processes import environment


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = tmp_path / "home"
    return Place(home=Home(root), environ=environment(root), platform="linux")


def verdicts(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.verdict.value) for finding in findings]


def test_what_others_can_read_is_wrong_and_can_be_closed(place: Place) -> None:
    place.home.root.chmod(0o755)
    place.home.wallet_key.write_text("0" * 64)
    place.home.wallet_key.chmod(0o644)
    place.home.machine_id.write_text("0" * 32)
    place.home.machine_id.chmod(0o600)
    found = list(own.home(place))
    assert verdicts(found)[:2] == [("home", "note"), ("secrets", "wrong")]
    assert all(f.next_step for f in found[:2])
    assert len(repair(found)) == 2
    assert verdicts(own.home(place)) == [("home", "ok"), ("secrets", "ok"), ("disk", "ok")]
    assert place.home.wallet_key.stat().st_mode & 0o777 == 0o600


def test_a_damaged_identity_is_told_and_a_sound_one_shows_its_address(place: Place) -> None:
    place.home.machine_id.write_text("0" * 32)
    place.home.wallet_key.write_text("1".rjust(64, "0"))
    for path in (place.home.machine_id, place.home.wallet_key):
        path.chmod(0o600)
    (found,) = own.identity(place)
    assert "0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417" in found.evidence
    place.home.wallet_key.write_text("half")
    (found,) = examine({"identity": lambda: own.identity(place)})
    assert found.verdict is Verdict.WRONG
    assert found.next_step


def test_what_is_to_be_typed_holds_for_a_path_with_a_space(tmp_path: Path) -> None:
    root = tmp_path / "a home"
    root.mkdir(mode=0o755)
    (found, *_) = own.home(Place(home=Home(root), environ={}))
    assert found.next_step == f"chmod 700 '{root}'"


def test_a_repair_that_fails_says_so() -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    done = repair([wrong("home", "open", None, Repair("closed it", refuse))])
    assert done == ["not closed it: Operation not permitted"]


def test_a_home_that_is_a_file_or_closed_is_told(place: Place) -> None:
    shutil.rmtree(place.home.root)
    place.home.root.write_text("")
    assert verdicts(own.home(place)) == [("home", "wrong")]


def test_a_full_disk_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "LEAST_FREE_BYTES", 10**18)
    assert ("disk", "wrong") in verdicts(own.home(place))


def test_nothing_is_made_by_looking(place: Place) -> None:
    shutil.rmtree(place.home.root)
    for check in (
        own.home,
        own.identity,
        own.journal,
        own.models,
        own.account,
        own.daemon,
        own.service,
    ):
        list(check(place))
    assert not place.home.root.exists()


def test_a_damaged_journal_is_told_with_what_to_do(place: Place) -> None:
    place.home.journal.write_text("this is no database")
    (found,) = examine({"journal": lambda: own.journal(place)})
    assert found.verdict is Verdict.WRONG
    assert found.next_step


def test_a_socket_left_behind_is_removed_by_the_repair(place: Place) -> None:
    path = place.home.control_socket
    path.parent.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(path.parent)  # the temporary directory's own path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(path.name)
    finally:
        os.chdir(before)
    found = list(own.daemon(place))
    assert verdicts(found) == [("daemon", "note"), ("daemon", "note")]
    assert repair(found) == [f"removed {path}"]
    assert not path.exists()


def with_systemctl(place: Place, script: str) -> Place:
    """The same place with the service installed and this stand-in for its manager's tool."""
    tool = place.home.root / "bin" / "systemctl"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    unit = Path(place.environ["XDG_CONFIG_HOME"]) / "systemd" / "user" / f"{LABEL}.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\n")
    environ = {**place.environ, "PATH": f"{tool.parent}:/usr/bin:/bin"}
    return dataclasses.replace(place, environ=environ)


def test_a_service_that_is_installed_and_does_not_run_is_wrong(place: Place) -> None:
    failed = "echo ActiveState=failed; echo ExecMainStatus=1; echo MainPID=0"
    (found,) = own.service(with_systemctl(place, failed))
    assert found.verdict is Verdict.WRONG
    assert "darkbloom start" in (found.next_step or "")


def test_a_service_manager_that_hangs_is_given_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "TOOL_S", 0.2)
    asked = with_systemctl(place, "sleep 60")
    (found,) = examine({"service": lambda: own.service(asked)})
    assert found.verdict is not Verdict.OK
    assert found.evidence
