"""The daemon's Unix socket: bound by us, so that only the owner can reach it.

uvicorn would create it world-writable and leave it behind after a crash.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
from pathlib import Path

from darkbloom_provider.errors import AlreadyRunningError, UsageError
from darkbloom_provider.paths import PRIVATE_FILE, private_directory

MAX_PATH_BYTES = 103
"""`sun_path` holds 104 bytes on macOS, the last of them a NUL."""
PROBE_SECONDS = 1.0
BACKLOG = 32

# <sys/un.h> on macOS; Python's socket module does not name them.
_SOL_LOCAL = 0
_LOCAL_PEERPID = 2


class SocketPathTooLongError(UsageError):
    """The socket's path does not fit the system's limit."""


class ListeningSocket:
    """A bound, listening Unix socket and the file that stands for it.

    Closing it removes the file, unless another process has put its own in the place meanwhile.
    """

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.socket = sock
        self.path = path
        self._identity = _identity(path)

    def close(self) -> None:
        """Close the socket and remove its file. Idempotent."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def listen(path: Path) -> ListeningSocket:
    """Bind and listen on `path`: 0600 inside a 0700 directory, a dead predecessor removed.

    Raises:
        SocketPathTooLongError: The path exceeds `MAX_PATH_BYTES`.
        AlreadyRunningError: A living process listens there, or the path is no socket.
    """
    check_length(path)
    private_directory(path.parent)
    remove_if_dead(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        # Nobody can connect before this line: the directory is closed to others.
        path.chmod(PRIVATE_FILE)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return ListeningSocket(sock, path)
    except BaseException:
        sock.close()
        raise


def check_length(path: Path) -> None:
    """Refuse a path that the system would cut off.

    Raises:
        SocketPathTooLongError: With its length and the way out.
    """
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise SocketPathTooLongError(
            f"The control socket's path is too long: {path}",
            why=f"it has {length} bytes and Unix sockets allow {MAX_PATH_BYTES}",
            next_step="choose a shorter home, e.g. DARKBLOOM_HOME=~/.darkbloom",
        )


def remove_if_dead(path: Path) -> None:
    """Remove the socket file of a process that is gone; leave everything else alone.

    Raises:
        AlreadyRunningError: Somebody answers, or the file is not a socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AlreadyRunningError(
            f"{path} is in the way",
            why="it is not a socket, so it is not ours to remove",
            next_step=f"move {path} away",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pid = None  # It accepts nothing, but it lives.
        else:
            pid = peer_pid(probe)
    raise already_running(pid)


def already_running(pid: int | None) -> AlreadyRunningError:
    """The error for a second daemon on one home."""
    who = "another process" if pid is None else f"process {pid}"
    return AlreadyRunningError(
        "A daemon is already running for this home",
        why=f"{who} holds it",
        next_step="see `darkbloom status`, or end it with `darkbloom stop`",
    )


def peer_pid(connected: socket.socket, platform: str = sys.platform) -> int | None:
    """The pid at the other end of a connected Unix socket, or None if the system does not say."""
    try:
        if platform == "darwin":
            return int(connected.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)) or None
        if platform == "linux":
            raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid: int = struct.unpack("3i", raw)[0]
            return pid or None
    except OSError:
        return None
    return None


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
