"""`darkbloom coordinator audit` and `backup`: are the books right, and is there a copy."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Connection, text

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.coordinator.ledger.audit import audit
from darkbloom_provider.coordinator.store import backup as copying
from darkbloom_provider.coordinator.store.storage import parse_url
from darkbloom_provider.errors import UsageError
from support.books import Shop, opened
from support.postgres import Server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(darkbloom, ["coordinator", *arguments], catch_exceptions=True)


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def trade(connection: Connection) -> None:
    shop = Shop(connection)
    shop.deposit(1_000_000)
    shop.reserve("a", 5_000)
    shop.settle("a", 120, 380)


async def told(place: Path | str, tmp_path: Path, command: str, *arguments: str) -> Result:
    url = place if isinstance(place, str) else f"sqlite:///{place}"
    where = ("--database", url, "--data", str(tmp_path / "state"))
    return await asyncio.to_thread(run, command, *where, *arguments)


async def test_right_books_are_proved_beside_a_running_coordinator(
    place: Path | str, tmp_path: Path
) -> None:
    async with opened(place) as db:
        await db.write(trade)
        shown = await told(place, tmp_path, "audit")
        assert (shown.exit_code, shown.exception) == (0, None)
        assert "The books are right." in shown.output
        assert "each job was credited once" in shown.output
        document = json.loads((await told(place, tmp_path, "audit", "--json")).output)
    assert document["ok"] is True
    assert {rule["rule"]: rule["checked"] for rule in document["rules"]}[
        "each job cost its tokens"
    ] == 1


WRONG = {
    "UPDATE accounts SET balance = balance + 1 WHERE id = 'owner-account'": "owner-account",
    "UPDATE entries SET amount = amount + 1 WHERE id = 1": "transfer 1",
    "DELETE FROM earnings": "was credited 0 times",
    "UPDATE jobs SET completion_tokens = 1": "its tokens",
    "UPDATE jobs SET payout = 0, fee = cost": "did not move what it says",
    "UPDATE transfers SET reference = 'x' WHERE type = 'payout'": "did not move what it says",
}


@pytest.mark.parametrize("change", WRONG)
async def test_wrong_books_are_named_and_the_exit_code_says_so(
    place: Path | str, tmp_path: Path, change: str
) -> None:
    async with opened(place) as db:
        await db.write(trade)
        await db.write(lambda c: c.execute(text(change)).close())
    shown = await told(place, tmp_path, "audit")
    assert shown.exit_code == 1
    assert "The books are wrong in" in shown.output
    assert WRONG[change] in shown.output
    assert json.loads((await told(place, tmp_path, "audit", "--json")).output)["ok"] is False


def test_a_directory_without_a_ledger_is_not_called_right(tmp_path: Path) -> None:
    result = run("audit", "--data", str(tmp_path))
    assert isinstance(result.exception, UsageError)
    assert list(tmp_path.iterdir()) == []


async def test_a_backup_of_a_running_coordinator_is_one_private_audited_moment(
    tmp_path: Path,
) -> None:
    place, copy = tmp_path / "ledger.sqlite3", tmp_path / "copies" / "one.sqlite3"
    async with opened(place) as db:
        await db.write(trade)
        made = await told(place, tmp_path, "backup", str(copy))
        assert made.exit_code == 0, made.exception
        await db.write(lambda c: Shop(c).deposit(5))
    assert "books right" in made.output
    assert [file.name for file in copy.parent.iterdir()] == ["one.sqlite3"]
    assert copy.stat().st_mode & 0o777 == 0o600
    again = await told(place, tmp_path, "backup", str(copy))
    assert isinstance(again.exception, UsageError)
    # As the printed line says.
    shell("sh", "-c", made.output.partition("then: ")[2])
    async with opened(place) as db:
        assert await db.read(audit) == []
        total = text("SELECT balance FROM accounts WHERE id = 'internal:deposits'")
        assert await db.read(lambda c: c.execute(total).scalar_one()) == -1_000_000


def test_a_backup_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    result = run("backup", str(tmp_path / "b"), "--data", str(tmp_path / "none"))
    assert isinstance(result.exception, copying.BackupError)
    assert list(tmp_path.glob("b*")) == []


async def test_a_backup_of_postgresql_restores_to_right_books(
    postgres: Server, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(postgres.programs), prepend=":")
    async with opened(postgres_url) as db:
        await db.write(trade)
        made = await told(postgres_url, tmp_path, "backup", str(tmp_path / "b.dump"))
    assert made.exit_code == 0, made.exception
    restored = postgres.fresh("restored")
    name = parse_url(restored).set(drivername="postgresql").render_as_string()
    shell(str(postgres.programs / "pg_restore"), "--dbname", name, str(tmp_path / "b.dump"))
    async with opened(restored) as db:
        assert await db.read(audit) == []


def test_without_pg_dump_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(copying.BackupError) as failed:
        copying.backup("postgresql://u:secret@h/d", tmp_path / "b", environ={"PATH": ""})
    assert failed.value.next_step
    assert "secret" not in str(failed.value)
    assert list(tmp_path.iterdir()) == []
