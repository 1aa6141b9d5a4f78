"""Real `darkbloom` processes for end-to-end tests, each in a home of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

PATIENCE_S = 60.0
"""How long a condition of another process may take on a busy machine before the test fails."""


def environment(home: Path, **extra: str) -> dict[str, str]:
    """What a user's shell would hand over, with every trace of the real user taken out."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home / "user"),
        "LANG": "C.UTF-8",
        "TMPDIR": str(_made(home / "tmp")),
        "DARKBLOOM_HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
        **extra,
    }


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def darkbloom(
    *arguments: str, home: Path, env: Mapping[str, str] | None = None, timeout: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "darkbloom_provider", *arguments],
        env=environment(home, **(env or {})),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


class Program:
    """A long-running `darkbloom` process, its output in a file."""

    def __init__(self, name: str, *arguments: str, home: Path, **extra: str) -> None:
        self.name = name
        self._log = _made(home / "output") / f"{name}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "darkbloom_provider", *arguments],
                env=environment(home, **extra),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # A process group of its own, as a shell gives it.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def output(self) -> str:
        """All it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def ctrl_c(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to the program and all that it has started."""
        os.killpg(self.pid, signal.SIGINT)

    async def ended(self, patience: float = PATIENCE_S) -> int:
        """Wait for its end; its exit code."""
        await until(lambda: not self.running, f"{self.name} to end", patience, of=self)
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL, and reap."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(name: str, *arguments: str, home: Path, **extra: str) -> Iterator[Program]:
    """A program that is gone when the block ends, however it ends."""
    program = Program(name, *arguments, home=home, **extra)
    try:
        yield program
    finally:
        program.kill()


async def until(
    condition: Callable[[], object] | Callable[[], Awaitable[object]],
    what: str,
    patience: float = PATIENCE_S,
    *,
    of: Program | None = None,
) -> None:
    """Wait for a condition in another process, which nothing here can be notified of."""
    deadline = time.monotonic() + patience
    while True:
        outcome = condition()
        if isinstance(outcome, Awaitable):
            outcome = await outcome
        if outcome:
            return
        if time.monotonic() > deadline or (of is not None and not of.running):
            state = "" if of is None else f"; {of.name} printed:\n{of.output}"
            raise AssertionError(f"waited in vain for {what}{state}")
        await asyncio.sleep(0.02)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
