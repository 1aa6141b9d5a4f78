from __future__ import annotations

import subprocess
import sys

import click
import pytest

from darkbloom_provider.cli import main as cli
from darkbloom_provider.errors import CredentialsError


def test_help_and_version_load_neither_mlx_nor_a_server() -> None:
    program = (
        "import sys; from darkbloom_provider.cli.main import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "heavy = {'mlx', 'mlx_lm', 'sqlalchemy', 'uvicorn', 'httpx', 'websockets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    for argument in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", program, argument], check=True, capture_output=True)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_in_the_list_exists_and_explains_itself(name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["earnigns"])
    assert caught.value.code == 2
    assert "No such command" in capsys.readouterr().err


def test_every_typed_error_says_what_why_and_what_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise CredentialsError("The token was refused", why="revoked", next_step="darkbloom login")

    monkeypatch.setattr(cli.darkbloom, "main", refuse)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 4
    assert capsys.readouterr().err.splitlines() == [
        "The token was refused",
        "  Why:  revoked",
        "  Next: darkbloom login",
    ]


def test_ctrl_c_ends_a_command_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_options: object) -> None:
        raise click.exceptions.Abort

    monkeypatch.setattr(cli.darkbloom, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 130
