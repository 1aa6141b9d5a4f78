from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from darkbloom_provider import paths


def test_the_home_is_named_by_the_environment_else_in_the_users_home(tmp_path: Path) -> None:
    assert paths.Home.from_environment({"DARKBLOOM_HOME": str(tmp_path)}).root == tmp_path
    assert paths.Home.from_environment({}).root == Path.home() / ".darkbloom"


def test_a_private_file_is_readable_by_its_owner_only_even_under_a_lax_umask(
    tmp_path: Path,
) -> None:
    previous = os.umask(0)
    try:
        target = tmp_path / "new" / "secret"
        paths.write_private(target, b"x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o700


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "secret"
    paths.write_private(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        paths.write_private(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_open_directory_is_closed_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    paths.private_directory(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_config_files_of_the_existing_client_come_after_ours() -> None:
    names = [str(path) for path in paths.config_candidates({}, platform="darwin")]
    assert [name.split("/")[-2] for name in names] == [
        "darkbloom",
        "eigeninference",
        "eigeninference",
    ]
    assert "Application Support" in names[-1]
