"""A home whose socket path is short enough, wherever the test's own directory is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A private directory with a short path."""
    with tempfile.TemporaryDirectory(prefix="db-", dir="/tmp") as directory:
        yield Path(directory)
