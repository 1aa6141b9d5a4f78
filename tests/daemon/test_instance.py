from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from darkbloom_provider.daemon.instance import single_instance
from darkbloom_provider.errors import AlreadyRunningError
from darkbloom_provider.host.service import daemon_pid


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "home" / "provider.pid"
    with single_instance(path, 4711):
        with pytest.raises(AlreadyRunningError, match="4711") as caught, single_instance(path, 2):
            pass
        assert "darkbloom status" in (caught.value.next_step or "")
        assert daemon_pid(path) == 4711
    assert daemon_pid(path) is None


def test_the_file_of_a_dead_daemon_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "provider.pid"
    path.write_text("99999999\n")
    with single_instance(path, 1234):
        assert path.read_text() == "1234\n"
    assert path.read_text() == ""


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "provider.pid"
    program = (
        "import os, sys, pathlib\n"
        "from darkbloom_provider.daemon.instance import single_instance\n"
        "with single_instance(pathlib.Path(sys.argv[1]), os.getpid()):\n"
        "    os._exit(9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert ended.returncode == 9
    assert path.read_text() != ""
    with single_instance(path, 1):
        pass


def test_a_glance_at_the_lock_does_not_keep_a_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "provider.pid"
    path.touch()
    glance = os.open(path, os.O_RDONLY)
    fcntl.flock(glance, fcntl.LOCK_SH)
    monkeypatch.setattr(
        "darkbloom_provider.daemon.instance.time.sleep",
        lambda _seconds: fcntl.flock(glance, fcntl.LOCK_UN),
    )
    with single_instance(path, 1):
        pass
    os.close(glance)


def test_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "provider.pid"
    with single_instance(path, 1):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
