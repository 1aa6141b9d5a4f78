"""`darkbloom coordinator audit|backup`: is the ledger right, and is there another one of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from rich.table import Table

from darkbloom_provider.cli.coordinator_state import Books, on_books
from darkbloom_provider.coordinator.ledger import audit as auditing
from darkbloom_provider.coordinator.ledger.audit import Verdict
from darkbloom_provider.coordinator.operator import Operator
from darkbloom_provider.coordinator.server import DATABASE_FILE
from darkbloom_provider.coordinator.store import backup as copying
from darkbloom_provider.errors import ExitCode, UsageError

_SHOWN_FINDINGS = 20


@click.command("audit")
@on_books
def audit(books: Books) -> None:
    """Prove that the books are right; exit code 1 if they are not.

    Every balance must be the sum of its entries, every job must have cost its tokens and been
    credited once, and all accounts together must be zero. Works beside a running coordinator.
    """
    if books.database is None and not (books.directory / DATABASE_FILE).exists():
        raise UsageError(
            f"There is no ledger in {books.directory}",
            next_step="name its directory with --data, or its URL with --database",
        )

    async def check(operator: Operator) -> list[Verdict]:
        return await operator.database.read(auditing.report)

    verdicts = books.operate(check)
    wrong = [finding for verdict in verdicts for finding in verdict.findings]
    if books.as_json:
        rules = [dataclasses.asdict(verdict) for verdict in verdicts]
        books.show({"ok": not wrong, "rules": rules}, [])
    else:
        books.invocation.out.print(_table(verdicts))
        shown = wrong[:_SHOWN_FINDINGS]
        more = len(wrong) - len(shown)
        lines = [f"  {finding}" for finding in shown] + ([f"  … and {more} more"] if more else [])
        books.show({}, ["", f"The books are {_in_words(wrong)}", *lines])
    if wrong:
        raise SystemExit(ExitCode.FAILURE)


def _in_words(wrong: list[str]) -> str:
    if not wrong:
        return "right."
    return f"wrong in {len(wrong)} {'place' if len(wrong) == 1 else 'places'}:"


def _table(verdicts: list[Verdict]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("Rule")
    table.add_column("Checked", justify="right")
    table.add_column("Of", style="dim")
    table.add_column("Result")
    for verdict in verdicts:
        result = f"{len(verdict.findings)} wrong" if verdict.findings else "holds"
        table.add_row(verdict.rule, str(verdict.checked), verdict.subject, result)
    return table


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@on_books
def backup(books: Books, *, file: Path) -> None:
    """Copy the ledger into FILE, while the coordinator runs.

    A SQLite copy is audited before it gets its name. PostgreSQL is copied by `pg_dump`.
    """
    where = books.database or books.directory / DATABASE_FILE
    done = copying.backup(where, file.absolute(), environ=books.invocation.environ)
    document = {
        "path": str(done.path),
        "size_bytes": done.size_bytes,
        "findings": None if done.findings is None else list(done.findings),
        "restore": done.restore,
    }
    if done.findings is None:
        state = "not audited; `coordinator audit` audits the database itself"
    else:
        state = f"books {_in_words(list(done.findings)).rstrip('.:')}"
    books.show(
        document,
        [
            f"Backup:  {done.path} ({done.size_bytes} bytes, {state})",
            f"Restore: {done.restore}",
        ],
    )
    if done.findings:
        raise SystemExit(ExitCode.FAILURE)


COMMANDS = (audit, backup)
