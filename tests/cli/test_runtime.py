from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from darkbloom_provider.cli.main import darkbloom
from darkbloom_provider.host import runtime
from darkbloom_provider.host.runtime import Code


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime of one file: the real one takes seconds, see tests/host/test_runtime.py."""
    (tmp_path / "module.py").write_text("x = 1\n")
    monkeypatch.setattr(Code, "of_this_process", lambda: Code((tmp_path,)))


def test_the_hashes_are_printed_as_an_operator_lists_them() -> None:
    result = CliRunner().invoke(darkbloom, ["runtime", "hash"], catch_exceptions=False)
    python = hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()
    inner = hashlib.sha256(b"x = 1\n").digest()
    assert result.stdout.splitlines() == [
        f"python_hash   {python}",
        f"runtime_hash  {hashlib.sha256(inner).hexdigest()}",
    ]


def test_programs_read_the_same_hashes() -> None:
    result = CliRunner().invoke(darkbloom, ["runtime", "hash", "--json"], catch_exceptions=False)
    found = runtime.measure()
    assert json.loads(result.stdout) == {
        "python_hash": found.python,
        "runtime_hash": found.runtime,
        "files": 1,
    }
