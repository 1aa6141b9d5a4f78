from __future__ import annotations

import time
from pathlib import Path

from darkbloom_provider.host.command import SYSTEM_PATH, Tools


def script(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    script(tmp_path, "tool", 'echo "$1"; echo no >&2; exit 3')
    answer = Tools(str(tmp_path))("tool", "a b")
    assert (answer.code, answer.out, answer.err) == (3, "a b\n", "no\n")
    assert not answer.ok
    assert answer.evidence() == "tool a b: a b"


def test_a_missing_tool_is_an_answer(tmp_path: Path) -> None:
    answer = Tools(str(tmp_path))("tool")
    assert answer.missing
    assert not answer.ok


def test_a_tool_outside_the_systems_directories_is_not_asked(tmp_path: Path) -> None:
    script(tmp_path, "csrutil", "echo System Integrity Protection status: enabled.")
    assert str(tmp_path) not in SYSTEM_PATH
    assert Tools()("csrutil", "status").code is None or Path("/usr/bin/csrutil").exists()


def test_a_file_that_is_no_program_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    answer = Tools(str(tmp_path))("tool")
    assert answer.code is None
    assert not answer.missing


def test_a_tool_that_hangs_with_a_child_on_its_pipe_is_given_up(tmp_path: Path) -> None:
    script(tmp_path, "tool", "/bin/sleep 60 & /bin/sleep 60")
    started = time.monotonic()
    answer = Tools(str(tmp_path), timeout_s=0.2)("tool")
    assert answer.code is None
    assert "no answer within" in answer.err
    assert time.monotonic() - started < 5


def test_a_tool_gets_no_more_environment_than_it_is_given(tmp_path: Path) -> None:
    script(tmp_path, "tool", "/usr/bin/env")
    names = {line.partition("=")[0] for line in Tools(str(tmp_path))("tool").out.splitlines()}
    assert names <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD"}
