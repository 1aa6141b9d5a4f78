"""Which models are on this machine: our own folders, and the Hugging Face cache (read only).

A folder counts only if it is whole: a config, a tokenizer, and weight files that have the size
their headers promise. What is not whole is reported with the reason, never served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models import safetensors_file

TEMPORARY_PREFIX = ".importing-"
"""Folders of imports under way, or interrupted. Never models."""
_HUB_PREFIX = "models--"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A whole model on disk."""

    id: str
    path: Path
    size_bytes: int
    """Weights and all other files."""
    model_type: str
    """The architecture's name in `config.json`."""
    quantization: str
    """`4bit` and the like, or the type of unquantised numbers: `float32`, `bfloat16`."""


@dataclass(frozen=True, slots=True)
class IncompleteModel:
    """A folder that should be a model and cannot be used."""

    id: str
    path: Path
    why: str


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything found, each in the order of the ids."""

    installed: tuple[InstalledModel, ...]
    incomplete: tuple[IncompleteModel, ...]


def folder_name(model_id: str) -> str:
    """The folder of a model id: one path component on every system, and reversible.

    >>> folder_name("mlx-community/gemma-4-26b-a4b-it-8bit")
    'mlx-community%2Fgemma-4-26b-a4b-it-8bit'

    Raises:
        ModelError: The id is empty or too long for a file name.
    """
    name = quote(model_id, safe="")
    if name.startswith("."):  # hidden folders are never models
        name = "%2E" + name[1:]
    if not name or len(name) > 200:  # noqa: PLR2004 - file names have 255, temporary ones a prefix
        raise ModelError(f"{model_id[:80]!r} cannot be the id of a model", why="empty or too long")
    return name


def model_id_of(folder: str) -> str:
    """The id that `folder_name` made this folder of."""
    return unquote(folder)


def installed(models_dir: Path, hub_cache: Path | None = None) -> list[InstalledModel]:
    """All whole models, by id. One in `models_dir` hides one of the same id in the cache."""
    return list(survey(models_dir, hub_cache).installed)


def find(models_dir: Path, model_id: str, hub_cache: Path | None = None) -> InstalledModel:
    """The whole model with this id.

    Raises:
        ModelError: It is not on this machine, or not whole.
    """
    found = survey(models_dir, hub_cache)
    for model in found.installed:
        if model.id == model_id:
            return model
    why = next((bad.why for bad in found.incomplete if bad.id == model_id), None)
    raise ModelError(
        f"{model_id} is not installed" if why is None else f"{model_id} is not complete",
        why=why,
        next_step="run: darkbloom models list",
    )


def survey(models_dir: Path, hub_cache: Path | None = None) -> Survey:
    """Look at every folder that should be a model."""
    whole: dict[str, InstalledModel] = {}
    broken: dict[str, IncompleteModel] = {}
    for model_id, path in _own_folders(models_dir):
        try:
            whole[model_id] = inspect(model_id, path)
        except ModelError as error:
            broken[model_id] = IncompleteModel(model_id, path, error.why or error.what)
    if hub_cache is not None:
        for model_id, path in _snapshots(hub_cache):
            if model_id not in whole and (model := _hub_model(model_id, path)) is not None:
                whole[model_id] = model
                broken.pop(model_id, None)
    return Survey(
        installed=tuple(whole[model_id] for model_id in sorted(whole)),
        incomplete=tuple(broken[model_id] for model_id in sorted(broken)),
    )


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache, where its own libraries look for it."""
    if named := environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.expanduser() / "huggingface" / "hub"


def inspect(model_id: str, path: Path) -> InstalledModel:
    """What the folder holds.

    Raises:
        ModelError: It is not a whole mlx-lm model; `why` says what is missing.
    """
    config = _config(model_id, path)
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise _incomplete(model_id, "it has no tokenizer")
    weights = _weight_files(model_id, path)
    for file in weights:
        _check_weights(model_id, file)
    return InstalledModel(
        id=model_id,
        path=path,
        size_bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        model_type=config["model_type"],
        quantization=_quantization(config),
    )


def _config(model_id: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        raise _incomplete(model_id, "it has no config.json") from None
    except (OSError, ValueError):
        raise _incomplete(model_id, "its config.json cannot be read") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise _incomplete(model_id, "its config.json names no model_type")
    return config


def _weight_files(model_id: str, path: Path) -> list[Path]:
    present = sorted(path.glob("model*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            wanted = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise _incomplete(model_id, f"its {index.name} cannot be read") from None
        missing = sorted(wanted - {file.name for file in present})
        if missing:
            raise _incomplete(model_id, f"{missing[0]} is missing")
    if not present:
        raise _incomplete(model_id, "it has no weights")
    return present


def _check_weights(model_id: str, file: Path) -> None:
    try:
        expected = safetensors_file.read_header(file).file_size
        actual = file.stat().st_size
    except (OSError, ValueError) as error:
        raise _incomplete(model_id, f"{file.name} cannot be read ({error})") from None
    if actual != expected:
        raise _incomplete(model_id, f"{file.name} has {actual} of {expected} bytes")


def _quantization(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization") or config.get("quantization_config")
    if isinstance(settings, dict) and isinstance(settings.get("bits"), int):
        return f"{settings['bits']}bit"
    return str(config.get("torch_dtype") or config.get("dtype") or "unknown")


def _own_folders(models_dir: Path) -> Iterator[tuple[str, Path]]:
    if not models_dir.is_dir():
        return
    for path in sorted(models_dir.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield model_id_of(path.name), path


def _snapshots(cache: Path) -> Iterator[tuple[str, Path]]:
    """The current snapshot of each repository: `models--OWNER--NAME/snapshots/COMMIT`."""
    if not cache.is_dir():
        return
    for repository in sorted(cache.glob(f"{_HUB_PREFIX}*")):
        try:
            commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        snapshot = repository / "snapshots" / commit
        if commit and "/" not in commit and snapshot.is_dir():
            yield repository.name.removeprefix(_HUB_PREFIX).replace("--", "/"), snapshot


def _hub_model(model_id: str, path: Path) -> InstalledModel | None:
    """A model of the cache, if it is whole and made for MLX; other programs share the cache."""
    try:
        model = inspect(model_id, path)
        headers = [safetensors_file.read_header(file) for file in path.glob("model*.safetensors")]
    except (ModelError, OSError, ValueError):
        return None
    made_for_mlx = all(header.metadata.get("format") == "mlx" for header in headers)
    return model if made_for_mlx else None


def _incomplete(model_id: str, why: str) -> ModelError:
    return ModelError(
        f"{model_id} is not complete", why=why, next_step="import or download it again"
    )
