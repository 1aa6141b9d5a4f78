"""Brings a database to the shape this version needs: numbered SQL files, each applied once.

A file never changes after it was released; a new need is a new number. One transaction a file, so
a crash leaves the database at a whole number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from string import Template
from typing import Final

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
    inspect,
    select,
)

from darkbloom_provider.coordinator.store.schema import Instant
from darkbloom_provider.errors import DarkbloomError

_IDENTITY: Final = {
    # AUTOINCREMENT: the number of a ledger entry is never used twice.
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
_CLUSTERED: Final = {"sqlite": "WITHOUT ROWID", "postgresql": ""}
_FILE_NAME: Final = re.compile(r"(\d{4})_(\w+)\.sql")

_applied = Table(
    "schema_migrations",
    MetaData(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("applied_at", Instant, nullable=False),
)


class NewerDatabaseError(DarkbloomError):
    """The database was written by a newer version. It is left untouched."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: its number, its name and its SQL, the dialect's words still to be filled in."""

    number: int
    name: str
    sql: str

    def statements(self, dialect: str) -> list[str]:
        """The step as single statements in the SQL of `dialect`."""
        text = Template(self.sql).substitute(
            identity=_IDENTITY[dialect], clustered=_CLUSTERED[dialect]
        )
        text = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        return [statement for part in text.split(";") if (statement := part.strip())]


def shipped() -> list[Migration]:
    """The migrations inside this package, in order."""
    found = []
    for file in resources.files("darkbloom_provider.coordinator.store").joinpath("sql").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)


def current(connection: Connection) -> int:
    """The number the database is at; 0 if it is empty."""
    if not inspect(connection).has_table(_applied.name):
        return 0
    newest = connection.execute(select(func.max(_applied.c.number))).scalar_one()
    return 0 if newest is None else int(newest)


def migrate(
    engine: Engine, clock: Callable[[], datetime], migrations: Sequence[Migration] | None = None
) -> int:
    """Apply what is missing and return the number the database is at.

    Raises:
        NewerDatabaseError: The database is ahead of this program. Nothing was changed.
    """
    steps = shipped() if migrations is None else migrations
    newest = max((step.number for step in steps), default=0)
    with engine.begin() as connection:
        at = current(connection)
        if at > newest:
            raise NewerDatabaseError(
                "the coordinator's database was written by a newer version of darkbloom",
                why=f"it is at schema {at}, this version knows up to {newest}",
                next_step="upgrade darkbloom, or start the coordinator with another directory",
            )
        _applied.create(connection, checkfirst=True)
    for step in steps:
        if step.number > at:
            _apply(engine, step, clock())
    return newest


def _apply(engine: Engine, step: Migration, now: datetime) -> None:
    with engine.begin() as connection:
        if current(connection) >= step.number:
            return  # Another coordinator, started at the same time, was here first.
        for statement in step.statements(engine.dialect.name):
            connection.exec_driver_sql(statement)
        connection.execute(
            insert(_applied).values(number=step.number, name=step.name, applied_at=now)
        )
