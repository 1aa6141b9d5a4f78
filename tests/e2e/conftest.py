"""Homes for real processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home_root() -> Iterator[Path]:
    """A directory with a short name: the path of a Unix socket has room for about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="db-", dir="/tmp") as directory:
        yield Path(directory).resolve() / "home"
