from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkbloom_provider.cli.serve import with_idle_timeout
from darkbloom_provider.config import Config
from support.processes import darkbloom


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="db-", dir="/tmp") as directory:
        yield Path(directory)


def test_without_models_it_says_how_to_import_one(home: Path) -> None:
    ended = darkbloom("serve", "--coordinator", "http://127.0.0.1:9", home=home)
    assert ended.returncode == 1
    assert "No models are installed" in ended.stderr
    assert "darkbloom models import PATH.gguf" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_corrupt_setting_starts_nothing_and_names_its_line(home: Path) -> None:
    settings = home / "provider.toml"
    settings.write_text("[coordinator]\nheartbeat_interval_secs = 0\n")
    ended = darkbloom("-c", str(settings), "serve", home=home)
    assert ended.returncode == 2
    assert "line 2" in ended.stderr
    assert not (home / "provider.pid").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "8000"),
        ("--local", "--coordinator", "http://127.0.0.1:9"),
        ("--port", "70000", "--local"),
        ("--no-auto-update",),
        ("--idle-timeout", "-1"),
    ],
)
def test_flags_that_would_not_be_obeyed_are_refused(home: Path, arguments: tuple[str, ...]) -> None:
    ended = darkbloom("serve", *arguments, home=home)
    assert ended.returncode == 2
    assert arguments[0] in ended.stderr


def test_a_home_too_long_for_a_socket_is_told_with_the_way_out(home: Path) -> None:
    ended = darkbloom("serve", home=home / ("x" * 100))
    assert ended.returncode == 2
    assert "too long" in ended.stderr
    assert "DARKBLOOM_HOME" in ended.stderr


def test_the_idle_timeout_of_the_command_line_wins() -> None:
    assert with_idle_timeout(Config(), None).backend.idle_timeout_mins == 60
    assert with_idle_timeout(Config(), 0).backend.idle_timeout_mins == 0
