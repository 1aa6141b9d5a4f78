"""SQL is never put together from text: what varies is a bound parameter.

Read from the source: every call that takes SQL as text must be given a literal, and the few that
cannot (a migration's file, a setting of SQLite's own) are named here with their reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import darkbloom_provider

SOURCE = Path(darkbloom_provider.__file__).parent
TAKES_SQL = {
    "exec_driver_sql",
    "execute",
    "executemany",
    "executescript",
    "literal_column",
    "text",
}
FROM_CALLS = {"execute"}
"""May be given a statement object: then its argument is not text at all."""

NAMED = {
    # The statements of the numbered files that this package ships.
    ("coordinator/store/migrations.py", "exec_driver_sql", "statement"),
    # SQLite's settings take no parameters; these are constants of the module.
    ("coordinator/store/storage.py", "execute", "f'PRAGMA {pragma}'"),
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Name and first argument of every call that might take SQL."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in TAKES_SQL:
                yield name, node.args[0]


def built(argument: ast.expr) -> bool:
    """Whether an argument is text that is put together: formatted, added, joined."""
    if isinstance(argument, ast.JoinedStr | ast.BinOp):
        return True
    if isinstance(argument, ast.Call):
        return getattr(argument.func, "attr", "") in {"format", "join", "replace", "substitute"}
    return False


def varies(name: str, argument: ast.expr) -> bool:
    """Whether a call that takes only text is given anything but a literal."""
    if name in FROM_CALLS:
        return False
    choices = [argument]
    if isinstance(argument, ast.IfExp):
        choices = [argument.body, argument.orelse]
    return not all(isinstance(choice, ast.Constant) for choice in choices)


def offences(path: str, source: str) -> list[tuple[str, str, str]]:
    return [
        (path, name, ast.unparse(argument))
        for name, argument in calls(ast.parse(source))
        if built(argument) or varies(name, argument)
    ]


def test_no_sql_is_put_together_from_text() -> None:
    found = {
        offence
        for file in sorted((SOURCE / "coordinator").rglob("*.py"))
        for offence in offences(str(file.relative_to(SOURCE)), file.read_text(encoding="utf-8"))
    }
    assert found == NAMED


@pytest.mark.parametrize(
    "source",
    [
        'c.execute(f"SELECT {x}")',
        'c.execute("SELECT " + x)',
        'c.execute("SELECT %s" % x)',
        'c.execute("SELECT {}".format(x))',
        'c.execute(text(f"SELECT {x}"))',
        "c.execute(text(x))",
        "c.exec_driver_sql(x)",
        "select(literal_column(x))",
    ],
)
def test_what_would_be_an_injection_is_noticed(source: str) -> None:
    assert offences("x.py", source)


@pytest.mark.parametrize(
    "source", ["c.execute(select(t).where(t.c.id == x))", 'c.exec_driver_sql("BEGIN")']
)
def test_what_binds_its_values_is_not(source: str) -> None:
    assert not offences("x.py", source)
