"""A real PostgreSQL server of the tests' own: on a Unix socket, in a temporary directory."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

_START_S = 60.0


class NoServerError(Exception):
    """This machine has no PostgreSQL server program; says where one was looked for."""


@dataclass(slots=True)
class Server:
    """A running server. `stop` and `start` keep its data."""

    programs: Path
    directory: Path
    user: str
    _process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{self.user}@/{database}?host={self.directory}"

    def fresh(self, database: str = "ledger") -> str:
        """The URL of an empty database, made at the first use and emptied at later ones."""
        with self.administer() as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            if connection.execute(query, (database,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        with self.administer(database) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.url(database)

    def administer(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.directory), dbname=database, user=self.user, autocommit=True
        )

    def start(self) -> None:
        arguments = {
            "unix_socket_directories": str(self.directory),
            "listen_addresses": "",
            "max_connections": "60",
            # The machine does not lose power in a test: what counts is who wrote what when.
            "fsync": "off",
        }
        options = [part for name, value in arguments.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.directory / "data", *options],
                stdout=subprocess.DEVNULL,
                stderr=log,
                **_as_user(self.user),
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.administer().close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is PostgreSQL's fast shutdown, SIGQUIT its crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_START_S)
            self._process = None


def _as_user(user: str) -> dict[str, Any]:
    """Options of `Popen` that run a program as this user: the server refuses to be root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _programs() -> Path:
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    candidates += sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()],
        reverse=True,
    )
    for found in candidates:
        if (found / "initdb").exists():
            return found
    raise NoServerError("no PostgreSQL server: neither on the PATH nor in /usr/lib/postgresql")


def _unprivileged() -> str:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise NoServerError("PostgreSQL does not run as root, and there is no user to run it as")


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """A server that is gone when the block ends.

    Raises:
        NoServerError: This machine has none.
    """
    programs, user = _programs(), _unprivileged()
    # Not in pytest's directory: that is closed to other users, and too deep for a socket's path.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        directory = Path(name)
        if os.geteuid() == 0:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        subprocess.run(
            [
                *(programs / "initdb", "-D", directory / "data", "-U", user),
                *("--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd="/",
            **_as_user(user),
        )
        server = Server(programs, directory, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
