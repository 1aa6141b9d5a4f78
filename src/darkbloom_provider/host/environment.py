"""The environment variables a serving process may have, and the restart that leaves the rest out.

Variables reach far into a process before its first line runs: `DYLD_INSERT_LIBRARIES` and
`LD_PRELOAD` load foreign code, `PYTHONPATH` and `PYTHONSTARTUP` replace modules, `SSLKEYLOGFILE`
writes TLS keys to disk, a proxy variable sends traffic elsewhere. Removing them later is too late
for most, so the daemon starts itself again with the few it needs.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

MODULE: Final = "darkbloom_provider"

Rule = Callable[[str], bool]
"""Says something about a variable by its name."""

HELD_BACK: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end, blocked while it becomes another image."""

_ALLOWED: Final = frozenset(
    {
        "COLORTERM",
        "COLUMNS",
        "DBUS_SESSION_BUS_ADDRESS",
        "HOME",
        "LANG",
        "LINES",
        "LOGNAME",
        "NO_COLOR",
        "PATH",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TERM",
        "TMPDIR",
        "TZ",
        "USER",
        "__CF_USER_TEXT_ENCODING",
    }
)
_ALLOWED_PREFIXES: Final = ("DARKBLOOM_", "LC_", "XDG_")

KEYRING_VARIABLE: Final = "PYTHON_KEYRING_BACKEND"
"""Read by the keyring package, not by Python: the one `PYTHON*` name that is harmless. Python
ignores them all under `-I`; this one is passed on so that the owner's choice of keyring holds."""

_DANGEROUS_PREFIXES: Final = ("PYTHON", "DYLD_", "LD_", "MALLOC", "Malloc")
_DANGEROUS: Final = frozenset({"GCONV_PATH", "SSLKEYLOGFILE", "OPENSSL_CONF", "OPENSSL_MODULES"})
_PROXIES: Final = frozenset(
    {"all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "socks_proxy", "ws_proxy", "wss_proxy"}
)


def is_interpreter_variable(name: str) -> bool:
    """Whether `name` steers the Python interpreter."""
    return name.startswith("PYTHON") and name != KEYRING_VARIABLE


def is_proxy(name: str) -> bool:
    """Whether `name` sends HTTP or websocket traffic through another machine."""
    return name.lower() in _PROXIES


def is_dangerous(name: str) -> bool:
    """Whether `name` can load code into a process, change its runtime or spill its secrets."""
    if name == KEYRING_VARIABLE:
        return False
    return name in _DANGEROUS or name.startswith(_DANGEROUS_PREFIXES)


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of `environ` that a serving process keeps: an explicit list and nothing else."""
    return {
        name: value
        for name, value in environ.items()
        if name in _ALLOWED or name == KEYRING_VARIABLE or name.startswith(_ALLOWED_PREFIXES)
    }


def scrub(environ: MutableMapping[str, str]) -> tuple[str, ...]:
    """Remove dangerous and proxy variables from a running process; returns their names."""
    removed = tuple(sorted(name for name in environ if is_dangerous(name) or is_proxy(name)))
    for name in removed:
        del environ[name]
    return removed


def started_with(block: bytes) -> tuple[str, ...]:
    """The variable names in an environment block as the kernel keeps it (`/proc/self/environ`)."""
    entries: Iterable[bytes] = block.split(b"\0")
    return tuple(entry.partition(b"=")[0].decode(errors="replace") for entry in entries if entry)


@dataclass(frozen=True, slots=True)
class Restart:
    """A program to become: path, arguments and environment."""

    program: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]


def isolated_restart(
    argv: Sequence[str], environ: Mapping[str, str], *, isolated: bool, python: str
) -> Restart | None:
    """What to become so that `argv` runs isolated; None when this process already is.

    Args:
        argv: The arguments after `darkbloom`.
        environ: The environment of this process.
        isolated: `sys.flags.isolated`.
        python: This interpreter, unresolved: inside a virtual environment its path matters.
    """
    if isolated:
        return None
    return Restart(python, (python, "-I", "-m", MODULE, *argv), scrubbed(environ))


def reexec_isolated(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become `python -I -m darkbloom_provider ARGV` with the scrubbed environment.

    Returns only when the interpreter is isolated already. The process id stays the same, so
    launchd, systemd and the terminal notice nothing. Nothing must be open yet that has to be
    closed: this process image ends here.

    Signals that come meanwhile wait until the new image is ready for them, and lets them through.

    Raises:
        OSError: The interpreter cannot be started again.
    """
    restart = isolated_restart(
        argv, environ, isolated=bool(sys.flags.isolated), python=sys.executable
    )
    if restart is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        # An interpreter that is interrupted while it starts prints a traceback. The mask of blocked
        # signals, and those that wait behind it, outlive execve(2).
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            os.execve(restart.program, restart.argv, restart.environ)  # noqa: S606 - no shell is the point
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
