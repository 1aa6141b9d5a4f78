"""Where these tests keep their ledgers: in a file, and on a real PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.postgres import NoServerError, Server, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The one server of the whole run; skipped where the machine has none."""
    try:
        with postgres_server() as server:
            yield server
    except NoServerError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def postgres_url(postgres: Server) -> str:
    """An empty PostgreSQL database."""
    return postgres.fresh()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a fresh ledger is to be made. Each test that asks for it runs on both databases."""
    if request.param == "sqlite":
        return tmp_path / "ledger.sqlite3"
    url: str = request.getfixturevalue("postgres_url")
    return url
