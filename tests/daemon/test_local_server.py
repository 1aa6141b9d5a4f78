from __future__ import annotations

import stat
from pathlib import Path

import pytest

from darkbloom_provider.daemon.local_server import (
    KEY_PREFIX,
    address,
    listening,
    load_or_create_key,
)
from darkbloom_provider.errors import AlreadyRunningError, CredentialsError


def _hex(size: int) -> str:
    return "ab" * size


def test_the_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "home" / "local_key"
    made = load_or_create_key(path, _hex)
    assert made.reveal() == KEY_PREFIX + "ab" * 32
    path.chmod(0o644)
    again = load_or_create_key(path, lambda _size: "never asked")
    assert again.reveal() == made.reveal()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "ab" not in repr(made)


@pytest.mark.parametrize("content", ["", "short", KEY_PREFIX + "zz" * 32, "\u00e9"])
def test_a_file_that_holds_no_key_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "local_key"
    path.write_text(content)
    with pytest.raises(CredentialsError) as caught:
        load_or_create_key(path, _hex)
    assert str(path) in (caught.value.next_step or "")
    assert path.read_text() == content


def test_a_key_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CredentialsError):
        load_or_create_key(tmp_path / "file" / "local_key", _hex)


def test_a_taken_port_is_named_with_what_to_type() -> None:
    with listening(0) as first:
        url = address(first)
        port = int(url.rpartition(":")[2])
        with pytest.raises(AlreadyRunningError) as caught, listening(port):
            pass
    assert url.startswith("http://127.0.0.1:")
    assert str(port) in str(caught.value)
    assert f"--port {port + 1}" in (caught.value.next_step or "")
