"""A database reaches the shape this version needs, or is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    Engine,
    Float,
    Integer,
    MetaData,
    Text,
    inspect,
    text,
)
from sqlalchemy.exc import OperationalError, ProgrammingError

from darkbloom_provider.coordinator.store import migrations, schema
from darkbloom_provider.coordinator.store.database import Database
from darkbloom_provider.coordinator.store.migrations import Migration, NewerDatabaseError
from support.books import Clock, fresh_engine, writing_engine


def reflected(engine: Engine) -> MetaData:
    found = MetaData()
    found.reflect(engine)
    return found


def test_the_migrated_tables_are_the_ones_queries_see(place: Path | str) -> None:
    engine = fresh_engine(place)
    made = reflected(engine)
    engine.dispose()
    assert set(made.tables) - {"schema_migrations"} == set(schema.metadata.tables)
    kinds = {BigInteger: Integer, Integer: Integer, Text: Text, Boolean: Boolean, Double: Float}
    for name, table in schema.metadata.tables.items():
        actual = made.tables[name]
        assert {c.name for c in table.columns} == {c.name for c in actual.columns}
        assert {c.name for c in table.primary_key} == {c.name for c in actual.primary_key}
        for column in table.columns:
            there = actual.columns[column.name]
            assert there.nullable == column.nullable, f"{name}.{column.name}"
            kind = getattr(column.type, "impl", column.type)
            wanted = next(kinds[k] for k in kinds if isinstance(kind, k))
            assert isinstance(there.type, wanted), f"{name}.{column.name}"


def test_a_database_is_migrated_once(place: Path | str) -> None:
    engine = fresh_engine(place)
    newest = migrations.migrate(engine, Clock())
    with engine.begin() as connection:
        assert migrations.current(connection) == newest == migrations.shipped()[-1].number
        rows = connection.execute(text("SELECT COUNT(*) FROM schema_migrations")).scalar_one()
    engine.dispose()
    assert rows == newest


def test_the_numbers_have_no_gap() -> None:
    assert [step.number for step in migrations.shipped()] == list(
        range(1, len(migrations.shipped()) + 1)
    )


def test_a_later_migration_keeps_the_data(place: Path | str) -> None:
    engine = writing_engine(place)
    one = Migration(1, "first", "CREATE TABLE t (id $identity, name TEXT NOT NULL);")
    two = Migration(2, "second", "ALTER TABLE t ADD COLUMN age BIGINT;\nUPDATE t SET age = 3;")
    migrations.migrate(engine, Clock(), [one])
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO t (name) VALUES ('kept')"))
    assert migrations.migrate(engine, Clock(), [one, two]) == 2
    with engine.begin() as connection:
        assert connection.execute(text("SELECT name, age FROM t")).one() == ("kept", 3)
    engine.dispose()


def test_a_migration_that_fails_changes_nothing(place: Path | str) -> None:
    engine = writing_engine(place)
    broken = Migration(1, "broken", "CREATE TABLE t (id $identity);\nINSERT INTO nowhere (1);")
    with pytest.raises((OperationalError, ProgrammingError)):
        migrations.migrate(engine, Clock(), [broken])
    assert not inspect(engine).has_table("t")
    with engine.begin() as connection:
        assert migrations.current(connection) == 0
    engine.dispose()


async def test_a_newer_database_is_refused_and_left_alone(place: Path | str) -> None:
    engine = fresh_engine(place)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO schema_migrations VALUES (999, 'future', 0)"))
    engine.dispose()
    for _ in range(2):
        with pytest.raises(NewerDatabaseError) as refused:
            await Database.open(place)
        assert "999" in str(refused.value)
        assert refused.value.next_step
