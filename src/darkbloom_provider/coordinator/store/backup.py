"""A copy of the ledger that is one moment of it, taken while the coordinator runs.

SQLite's own online backup (https://www.sqlite.org/backup.html), audited before it gets its name;
for PostgreSQL `pg_dump`, whose archive `pg_restore` reads. Keys of sessions are no part of it:
without them everybody signs in again, and no money is concerned.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from darkbloom_provider import paths
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.store.storage import parse_url, sqlite_engine
from darkbloom_provider.errors import DarkbloomError, UsageError


class BackupError(DarkbloomError):
    """No copy was made."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished copy."""

    path: Path
    size_bytes: int
    restore: str
    """What to type to use it."""
    findings: Sequence[str] | None
    """What the audit of the copy found; None if it cannot be audited where it is."""


def backup(where: str | Path, target: Path, *, environ: Mapping[str, str]) -> Backup:
    """Copy a ledger into a new file that only its owner may read.

    Raises:
        BackupError: There is no ledger, or it could not be copied. No file is left.
        UsageError: The target exists.
    """
    if target.exists():
        raise UsageError(
            f"{target} exists already",
            why="a backup never replaces another one",
            next_step="choose another name",
        )
    if not target.parent.exists():
        paths.private_directory(target.parent)
    partial = target.with_name(f"{target.name}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, paths.PRIVATE_FILE))
    try:
        if isinstance(where, str) and parse_url(where).get_backend_name() == "postgresql":
            _dump(parse_url(where), partial, environ)
            restore, findings = f"pg_restore --dbname DATABASE {target}", None
        else:
            file = where if isinstance(where, Path) else Path(parse_url(where).database or "")
            _copy(file, partial)
            findings = _audited(partial)
            # A write-ahead log left there belongs to the old file, and would spoil this one.
            restore = (
                f"stop the coordinator, then: rm -f {file}-wal {file}-shm && cp {target} {file}"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return Backup(target, target.stat().st_size, restore, findings)


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise BackupError(f"There is no ledger at {source}", next_step="check --data")
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as ledger,
            closing(sqlite3.connect(target)) as copy,
        ):
            ledger.backup(copy)
            # One file, not three: the copy needs no write-ahead log.
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise BackupError("The ledger could not be copied", why=str(error)) from error


def _audited(copy: Path) -> list[str]:
    # On a copy of the copy, since reading one in this program's way makes files beside it.
    scratch = copy.with_name(f"{copy.name}.audit")
    shutil.copyfile(copy, scratch)
    engine = sqlite_engine(scratch, writes=False)
    try:
        with engine.begin() as connection:
            return audit(connection)
    finally:
        engine.dispose()
        for file in copy.parent.glob(f"{scratch.name}*"):
            file.unlink()


def _dump(url: URL, target: Path, environ: Mapping[str, str]) -> None:
    program = shutil.which("pg_dump", path=environ.get("PATH"))
    if program is None:
        raise BackupError(
            "A ledger in PostgreSQL is copied by pg_dump, which is not on the PATH",
            next_step="install PostgreSQL's client programs (Debian: postgresql-client)",
        )
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    # The password travels in the environment: arguments can be seen by everybody on the machine.
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}
    ended = subprocess.run(  # noqa: S603 - our own arguments
        [program, "--format=custom", f"--file={target}", f"--dbname={plain}"],
        env={**environ, **secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        reason = ended.stderr.strip().splitlines()
        raise BackupError("pg_dump failed", why=reason[-1] if reason else None)
