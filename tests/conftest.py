"""Fixtures that every room's tests share: the two models."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight model folder; `support.tiny_model` says what to rely on. Read only."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny-random")
