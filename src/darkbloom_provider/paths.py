"""Where everything lives on disk. Pure: the environment is an argument, nothing is created here.

The names are those of `~/.darkbloom/` that owners and the community's tools know.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HOME_VARIABLE = "DARKBLOOM_HOME"
CONFIG_VARIABLE = "DARKBLOOM_CONFIG"

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True)
class Home:
    """The directory that holds one provider's state (`~/.darkbloom` unless told otherwise)."""

    root: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Home:
        """The home named by `DARKBLOOM_HOME`, else `~/.darkbloom`."""
        named = environ.get(HOME_VARIABLE)
        return cls(Path(named).expanduser().absolute() if named else Path.home() / ".darkbloom")

    @property
    def control_directory(self) -> Path:
        """The 0700 directory of the control socket."""
        return self.root / "run"

    @property
    def control_socket(self) -> Path:
        """The daemon's Unix socket."""
        return self.control_directory / "daemon.sock"

    @property
    def pid_file(self) -> Path:
        """Holds the running daemon's pid and is locked by it."""
        return self.root / "provider.pid"

    @property
    def daemon_state(self) -> Path:
        """What the daemon does, for programs that read a file (see `daemon.state_file`)."""
        return self.root / "daemon-state.json"

    @property
    def log_file(self) -> Path:
        """The daemon's log when launchd or systemd runs it."""
        return self.root / "provider.log"

    @property
    def journal(self) -> Path:
        """The local record of completed jobs (SQLite)."""
        return self.root / "journal.sqlite3"

    @property
    def credentials(self) -> Path:
        """The 0600 file that holds tokens where the system has no keyring."""
        return self.root / "credentials.json"

    @property
    def wallet_key(self) -> Path:
        """The 0600 secret behind the wallet address that unlinked earnings are kept under."""
        return self.root / "wallet_key"

    @property
    def machine_id(self) -> Path:
        """The 0600 random identity of this machine (see `host.identity`)."""
        return self.root / "machine_id"

    @property
    def local_key(self) -> Path:
        """The 0600 key of the local endpoint."""
        return self.root / "local_key"

    @property
    def benchmarks(self) -> Path:
        """The 0600 history of `darkbloom benchmark`, one JSON object a line."""
        return self.root / "benchmarks.jsonl"

    @property
    def models(self) -> Path:
        """Models imported by `darkbloom models import`, one mlx-lm folder each."""
        return self.root / "models"

    @property
    def scratch(self) -> Path:
        """The 0700 directory for temporary files of the engine's libraries."""
        return self.root / "tmp"

    @property
    def coordinator(self) -> Path:
        """State of the embedded coordinator: database and keys."""
        return self.root / "coordinator"


def config_candidates(environ: Mapping[str, str], platform: str = sys.platform) -> list[Path]:
    """Config files in the order they are looked for; the first that exists is read.

    The last two are those of the network's existing client, which are read but never written.
    """
    named = environ.get(CONFIG_VARIABLE)
    if named:
        return [Path(named).expanduser().absolute()]
    base = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    candidates = [base / "darkbloom" / "provider.toml", base / "eigeninference" / "provider.toml"]
    if platform == "darwin":
        support = Path.home() / "Library" / "Application Support"
        candidates.append(support / "eigeninference" / "provider.toml")
    return candidates


def private_directory(path: Path) -> Path:
    """Create `path` (and parents) as a directory only its owner can enter, and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY)
    if path.stat().st_mode & 0o077:
        path.chmod(PRIVATE_DIRECTORY)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` atomically with a 0600 file holding `content`, durable before the rename.

    Raises:
        OSError: The disk is full, read-only or gone. The old content is then untouched.
    """
    private_directory(path.parent)
    with _temporary_beside(path) as (descriptor, temporary):
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def replace_private(path: Path, content: bytes) -> None:
    """Replace `path` by a 0600 file, so that a reader sees the old content or the new, whole.

    Not forced onto the disk: after a loss of power nobody needs it. The temporary file has one
    name, so that a process killed here leaves at most one behind, which the next writes over.

    Raises:
        OSError: The disk is full, read-only or gone. The old content stays.
    """
    private_directory(path.parent)
    temporary = path.with_name(f".{path.name}.new")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, PRIVATE_FILE), "wb") as file:  # noqa: PTH123 — a descriptor
            file.write(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[tuple[int, Path]]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        yield descriptor, temporary
    finally:
        temporary.unlink(missing_ok=True)
