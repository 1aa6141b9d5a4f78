"""The ledger in PostgreSQL, shared by as many coordinators as its owner runs.

Writers take turns by a transaction-level advisory lock, which is what SQLite's BEGIN IMMEDIATE
does: no two transactions of this program ever interleave, on one machine or on several, so no
isolation anomaly can touch money. Group commit keeps that cheap.

A coordinator that lives holds a session-level advisory lock of its run's number, so that another
one refunds the open reservations of the dead only. Needs a direct connection or a pooler in
session mode, and PostgreSQL 13 or newer (`xid8`).

Functions: https://www.postgresql.org/docs/current/functions-admin.html (advisory locks) and
https://www.postgresql.org/docs/current/functions-info.html (`pg_xact_status`).
"""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError

from darkbloom_provider.coordinator.store.storage import BUSY_TIMEOUT_MS, READERS, unavailable
from darkbloom_provider.errors import UsageError

try:
    import psycopg
    from psycopg.abc import Buffer
    from psycopg.types.string import StrDumper
except ImportError as error:
    raise UsageError(
        "PostgreSQL needs a driver that is not installed",
        why=f"the package {error.name} is missing",
        next_step="pip install 'darkbloom-provider[postgres]'",
    ) from None

_LOCKS: Final = 0x6462_6C6D
"""Our half of the advisory locks' key ("dblm"). The other half is a run's number, or 0: writing."""
_WRITING: Final = 0
_CONNECT_SECONDS: Final = 5
_SILENCE_MS: Final = 10_000
"""A server that acknowledges nothing for so long is lost."""
_IDLE_IN_TRANSACTION_MS: Final = 30_000
"""The server ends a transaction whose coordinator froze while it had its turn."""
_ASKING_SECONDS: Final = 30.0
"""How long to ask for the fate of a commit whose answer was lost."""
_ASKING_PAUSE_SECONDS: Final = 0.1


class PostgresStorage:
    """One database on a server."""

    def __init__(self, url: URL) -> None:
        self._run: int | None = None
        self.writer = postgres_engine(url, writes=True)
        self.reader = postgres_engine(url, writes=False)

        @event.listens_for(self.writer, "connect")
        def _held_again(connection: psycopg.Connection[Any], _record: object) -> None:
            # The hold belongs to the connection, and this is its successor.
            if self._run is not None:
                connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", (_LOCKS, self._run))
                connection.commit()

    @property
    def alone(self) -> bool:
        """Whether no coordinator lives on this database.

        Raises:
            DatabaseError: It cannot be reached.
        """
        with self.reader.begin() as connection:
            return not self.live_runs(connection)

    def hold(self, run: int) -> None:
        """Hold the run's lock on the writer's connection, and on whichever replaces it."""
        self._run = run
        with self.writer.begin() as connection:
            connection.execute(
                text("SELECT pg_advisory_lock_shared(:locks, :run)"),
                {"locks": _LOCKS, "run": run},
            )

    def live_runs(self, connection: Connection) -> set[int]:
        """The runs whose locks are held in this database."""
        held = connection.execute(
            text(
                "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted"
                " AND classid::bigint = :locks AND objid::bigint <> :writing AND objsubid = 2"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            ),
            {"locks": _LOCKS, "writing": _WRITING},
        )
        return set(held.scalars())

    def ticket(self, connection: Connection) -> str:
        """The transaction's number."""
        number: str = connection.execute(
            text("SELECT CAST(pg_current_xact_id() AS TEXT)")
        ).scalar_one()
        return number

    def committed(self, ticket: str) -> bool:
        """Ask the server what became of a transaction, for as long as it still runs."""
        deadline = time.monotonic() + _ASKING_SECONDS
        while True:
            fate = self._fate(ticket)
            if fate in {"committed", "aborted"}:
                return fate == "committed"
            if time.monotonic() > deadline:
                raise unavailable(
                    "the connection broke, and whether the last write was kept is unknown"
                )
            time.sleep(_ASKING_PAUSE_SECONDS)

    def _fate(self, ticket: str) -> str | None:
        try:
            with self.reader.begin() as connection:
                fate: str | None = connection.execute(
                    text("SELECT pg_xact_status(CAST(:number AS xid8))"), {"number": ticket}
                ).scalar_one()
                return fate
        except DatabaseError:
            return None

    def close(self) -> None:
        """Close every connection, and the hold with them."""
        self.reader.dispose()
        self.writer.dispose()


class _TextDumper(StrDumper):
    """PostgreSQL's text cannot hold NUL. What asks for one finds nothing, as on SQLite."""

    def dump(self, obj: str) -> Buffer | None:
        """The text as bytes for the server."""
        return super().dump(obj.replace("\0", "\ufffd"))


def postgres_engine(url: URL, *, writes: bool) -> Engine:
    """Connections to a server: either the one writer's, or readers of snapshots."""
    engine = create_engine(
        url,
        pool_size=1 if writes else READERS,
        max_overflow=0,
        # A connection that died while it was idle is replaced before it is used.
        pool_pre_ping=True,
        hide_parameters=True,
        isolation_level="READ COMMITTED" if writes else "REPEATABLE READ",
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": _SILENCE_MS,
            "options": " ".join(
                f"-c {setting}"
                for setting in (
                    "synchronous_commit=on",
                    f"lock_timeout={BUSY_TIMEOUT_MS}",
                    f"idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_MS}",
                    # The server soon notices a coordinator's machine that vanished, and lets go of
                    # its locks.
                    "tcp_keepalives_idle=30",
                    "tcp_keepalives_interval=10",
                    "tcp_keepalives_count=3",
                )
            ),
        },
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.adapters.register_dumper(str, _TextDumper)
        connection.read_only = not writes

    if writes:

        @event.listens_for(engine, "begin")
        def _take_turn(connection: Connection) -> None:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:locks, :writing)"),
                {"locks": _LOCKS, "writing": _WRITING},
            )

    return engine
