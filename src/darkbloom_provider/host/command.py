"""Asking one of the system's own tools a question, without ever hanging on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
"""Where tools that measure this machine are looked for. Not the caller's PATH: a directory in
someone's home must not be able to answer for the system."""

TIMEOUT_S = 10.0
_AFTER_KILL_S = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool said. `code` is None when it is not there or did not answer in time."""

    command: str
    code: int | None
    out: str = ""
    err: str = ""

    @property
    def ok(self) -> bool:
        """Whether the tool ran and reported success."""
        return self.code == 0

    @property
    def missing(self) -> bool:
        """Whether this machine has no such tool."""
        return self.code is None and self.err == _MISSING

    def evidence(self) -> str:
        """One line for a person: the command and the first line of its answer."""
        said = (self.out.strip() or self.err.strip() or "said nothing").splitlines()[0]
        return f"{self.command}: {said}"


_MISSING = "not on this machine"


class Ask(Protocol):
    """Runs a tool and returns its answer. Never raises and never waits for ever."""

    def __call__(self, *argv: str) -> Answer:
        """Run `argv`; the first item is the tool's name."""
        ...


class Tools:
    """`Ask` with real processes.

    Args:
        path: Directories to look in, as in PATH.
        environ: The environment of the tools; only PATH and a fixed locale when absent.
        timeout_s: Seconds after which a tool is killed.
    """

    def __init__(
        self,
        path: str = SYSTEM_PATH,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._path = path
        self._environ = {**(environ or {}), "PATH": path, "LC_ALL": "C"}
        self._timeout_s = timeout_s

    def __call__(self, *argv: str) -> Answer:
        """Run `argv` in a process group of its own and return what it said."""
        command = " ".join(argv)
        program = shutil.which(argv[0], path=self._path)
        if program is None:
            return Answer(command, None, err=_MISSING)
        try:
            process = subprocess.Popen(  # noqa: S603 - a fixed name, found in `path` alone
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as error:
            return Answer(command, None, err=error.strerror or "cannot be run")
        with contextlib.ExitStack() as closing:
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    closing.callback(pipe.close)
            try:
                out, err = process.communicate(timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                _end(process)
                return Answer(command, None, err=f"no answer within {self._timeout_s:g} s")
        return Answer(
            command, process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    # The whole group: a grandchild that keeps the pipe open would make us wait for it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_AFTER_KILL_S)
