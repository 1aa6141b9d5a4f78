from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from darkbloom_provider.control import sockets
from darkbloom_provider.errors import AlreadyRunningError, ExitCode


def test_only_the_owner_can_reach_the_socket(short_home: Path) -> None:
    path = short_home / "run" / "daemon.sock"
    path.parent.mkdir(mode=0o755)
    listening = sockets.listen(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    listening.close()
    assert not path.exists()
    listening.close()


def test_a_second_listener_is_refused_with_the_pid_of_the_first(short_home: Path) -> None:
    path = short_home / "run" / "daemon.sock"
    listening = sockets.listen(path)
    try:
        with pytest.raises(AlreadyRunningError, match=str(os.getpid())):
            sockets.listen(path)
        assert path.exists()
    finally:
        listening.close()


def test_the_socket_of_a_killed_process_is_healed(short_home: Path) -> None:
    path = short_home / "run" / "daemon.sock"
    program = (
        "import os, sys, pathlib\n"
        "from darkbloom_provider.control import sockets\n"
        "sockets.listen(pathlib.Path(sys.argv[1])); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert path.exists()
    sockets.listen(path).close()


def test_a_file_that_is_no_socket_is_left_alone(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    path.write_text("precious")
    with pytest.raises(AlreadyRunningError, match="not a socket") as caught:
        sockets.listen(path)
    assert "move" in (caught.value.next_step or "")
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_told_with_the_way_out(short_home: Path) -> None:
    path = short_home / ("x" * 120) / "daemon.sock"
    with pytest.raises(sockets.SocketPathTooLongError, match="103") as caught:
        sockets.listen(path)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "DARKBLOOM_HOME" in (caught.value.next_step or "")


def test_the_length_is_counted_in_bytes(short_home: Path) -> None:
    fits = Path("/" + "x" * (sockets.MAX_PATH_BYTES - 1))
    sockets.check_length(fits)
    with pytest.raises(sockets.SocketPathTooLongError):
        sockets.check_length(Path("/" + "é" * 60))


def test_closing_leaves_a_successors_socket_alone(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    first = sockets.listen(path)
    path.unlink()
    successor = sockets.listen(path)
    first.close()
    assert path.exists()
    successor.close()


def test_a_peer_is_unknown_where_the_system_does_not_say() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert sockets.peer_pid(left, "linux") == os.getpid()
        assert sockets.peer_pid(left, "freebsd14") is None
