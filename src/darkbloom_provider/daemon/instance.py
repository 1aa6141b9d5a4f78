"""One daemon per home: an advisory lock on `provider.pid`, which dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from darkbloom_provider.control.sockets import already_running
from darkbloom_provider.paths import PRIVATE_FILE, private_directory

ATTEMPTS = 5
PAUSE_SECONDS = 0.01
_MAX_PID_BYTES = 32


@contextlib.contextmanager
def single_instance(pid_file: Path, pid: int) -> Iterator[None]:
    """Hold `pid_file` locked, with `pid` in it, for as long as the block runs.

    The kernel drops the lock with the process however it ends, so a file left behind by a crash
    is simply taken over. The file itself stays: removing it would let two daemons lock two files
    of one name.

    Raises:
        AlreadyRunningError: Another daemon holds it; the message names its pid.
    """
    private_directory(pid_file.parent)
    descriptor = os.open(pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        if not _locked(descriptor):
            raise already_running(_read_pid(descriptor))
        _write_pid(descriptor, f"{pid}\n")
        try:
            yield
        finally:
            _write_pid(descriptor, "")
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    for attempt in range(ATTEMPTS):
        if attempt:
            # `darkbloom start` looks whether anybody holds the lock by taking it for an instant.
            time.sleep(PAUSE_SECONDS)
        with contextlib.suppress(BlockingIOError):
            # flock, not fcntl's record locks: those would let this very process in twice.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, _MAX_PID_BYTES, 0).strip()
    return int(text) if text.isdigit() else None


def _write_pid(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
