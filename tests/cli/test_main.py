from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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


def test_the_daemon_keeps_no_http_client_and_no_database_of_a_coordinator_in_memory() -> None:
    program = (
        "import sys; import darkbloom_provider.cli.serve\n"
        "heavy = {'httpx', 'sqlalchemy', 'openai', 'mlx', 'mlx_lm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


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


@pytest.mark.parametrize("raised", [click.exceptions.Abort, KeyboardInterrupt])
def test_ctrl_c_ends_a_command_with_130(
    monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    def interrupted(**_options: object) -> None:
        raise raised

    monkeypatch.setattr(cli.darkbloom, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 130


def started(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs `program`."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ) | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_ctrl_c_while_modules_are_imported_ends_the_process_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    program = "from darkbloom_provider.__main__ import main; main()"
    done = started(program, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_held_back_is_let_through(number: signal.Signals) -> None:
    program = (
        "import os, signal, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "os.execv(sys.executable, [sys.executable, '-I', '-m', 'darkbloom_provider', '--version'])"
    )
    done = started(program)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "", "")


def test_an_interrupt_that_was_ignored_stays_ignored() -> None:
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "os.execv(sys.executable, [sys.executable, '-I', '-m', 'darkbloom_provider', '--version'])"
    )
    done = started(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert "darkbloom" in done.stdout
