"""`darkbloom models import`: a GGUF file becomes an mlx-lm folder, wholly or not at all.

The folder is written beside its place under a hidden name and renamed when it is complete. An
import that was killed leaves a hidden folder that is never taken for a model and is removed by the
next import. One import at a time writes in a models directory; the others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models import (
    gguf_file,
    gguf_llama,
    gguf_tokenizer,
    gguf_weights,
    safetensors_file,
    store,
)
from darkbloom_provider.models.gguf_file import GgufFile
from darkbloom_provider.models.gguf_llama import LlamaShape
from darkbloom_provider.models.gguf_weights import Piece, Precision
from darkbloom_provider.models.store import InstalledModel

Progress = Callable[[float, str], None]
"""How far (0 to 1), and what is being done."""
PrecisionChoice = Literal["auto", "fp32", "keep"]

PROVENANCE = "darkbloom.json"
"""Says which file a folder was made from."""
_VERSION = 1
"""Raised when the same file would be converted differently; folders of old are then replaced."""
_LOCK = ".import.lock"
_SPARE_BYTES = 64 * 1024 * 1024
"""Left free beyond the weights: tokenizer, configuration, the file system's own."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_QUANTISATION_SUFFIX = re.compile(r"[.\-_](i?q\d\w*|bf16|f16|f32|fp16|fp32)$", re.IGNORECASE)
_GENERIC_NAMES = frozenset({"", "model", "ggml-model"})


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import came to."""

    model: InstalledModel
    already_there: bool
    """The same file had been imported before; nothing was written."""


def import_gguf(
    source: Path,
    models_dir: Path,
    *,
    model_id: str | None = None,
    precision: PrecisionChoice = "auto",
    force: bool = False,
    progress: Progress = lambda _fraction, _phase: None,
    platform: str = sys.platform,
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> ImportResult:
    """Import the llama-architecture GGUF file `source`. Idempotent unless forced.

    Args:
        source: The file; only read.
        models_dir: Where models are installed (created).
        model_id: The id to install it as; `default_id` by default.
        precision: `keep` repacks the quantised numbers exactly; `fp32` dequantises. `auto` is
            `keep` on macOS where the file allows it, else `fp32`: without Metal that is faster.
        force: Replace what is there.
        progress: Told how far it is, in the calling thread.
        platform: As `sys.platform`.
        free_bytes: Free space of a directory's disk.

    Raises:
        ModelError: The file is missing, not GGUF, damaged, or not supported; the disk is full or
            cannot be written; or another model is there already and `force` was not given.
    """
    progress(0.0, "reading the file")
    size = gguf_file.probe(source)
    model_id = model_id or default_id(source)
    target = models_dir / store.folder_name(model_id)
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with _only_import(models_dir, progress):
            _remove_leftovers(models_dir)
            if not force and (there := _already_there(source, size, model_id, target)) is not None:
                return ImportResult(there, already_there=True)
            file = gguf_file.read(source)
            plan = _plan(file, _choose(precision, file, platform))
            _check_space(models_dir, plan.nbytes, free_bytes)
            with _temporary_folder(models_dir) as folder:
                _write(plan, folder, progress)
                progress(0.99, "putting it in place")
                store.inspect(model_id, folder)
                _put_in_place(folder, target)
    except OSError as error:
        raise _disk_problem(error, models_dir) from error
    progress(1.0, "done")
    return ImportResult(store.inspect(model_id, target), already_there=False)


def default_id(source: Path) -> str:
    """An id from the file's name without its quantisation, or from the name the model gives itself.

    Raises:
        ModelError: Neither says anything, or the file had to be read and could not be.
    """
    stem = _QUANTISATION_SUFFIX.sub("", source.stem)
    if stem.lower() in _GENERIC_NAMES:
        stem = gguf_file.read(source).get("general.name", str, "")
    name = re.sub(r"[^a-z0-9._]+", "-", stem.lower()).strip("-.")
    if not name:
        raise gguf_file.unusable(
            source,
            "neither its name nor its content names a model",
            next_step="give it with --id",
        )
    return name


def _choose(precision: PrecisionChoice, file: GgufFile, platform: str) -> Precision:
    if precision != "auto":
        return precision
    return "keep" if platform == "darwin" and gguf_weights.can_keep(file) else "fp32"


def _already_there(source: Path, size: int, model_id: str, target: Path) -> InstalledModel | None:
    """The model, if it was made from this very file; None if there is nothing usable."""
    try:
        model = store.inspect(model_id, target)
    except ModelError:
        return None
    origin = _origin_of(target)
    if origin == _origin(source, size):
        return model
    if origin is not None and origin | {"importer": _VERSION} == _origin(source, size):
        return None
    raise ModelError(
        f"{model_id} is installed already, from another file",
        why=f"it is in {target}",
        next_step="repeat with --force to replace it, or with --id to give this one another name",
    )


def _origin(source: Path, size: int) -> dict[str, Any]:
    return {"source": source.name, "source_bytes": size, "importer": _VERSION}


def _origin_of(folder: Path) -> dict[str, Any] | None:
    try:
        known = json.loads((folder / PROVENANCE).read_bytes())
        return {key: known[key] for key in ("source", "source_bytes", "importer")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class _Plan:
    """An import, checked and ready to be written."""

    file: GgufFile
    shape: LlamaShape
    precision: Precision
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of weights that will be written."""
        return sum(spec.nbytes for piece in self.pieces for spec in piece.specs)


def _plan(file: GgufFile, precision: Precision) -> _Plan:
    shape = gguf_llama.shape_of(file)
    gguf_tokenizer.check(file)
    pieces = tuple(gguf_weights.pieces(file, shape, precision))
    return _Plan(file, shape, precision, pieces)


def _write(plan: _Plan, folder: Path, progress: Progress) -> None:
    file, shape, precision = plan.file, plan.shape, plan.precision
    specs = [spec for piece in plan.pieces for spec in piece.specs]
    safetensors_file.write(
        folder / "model.safetensors", specs, _arrays(plan, progress), metadata={"format": "mlx"}
    )
    progress(0.95, "writing the tokenizer")
    gguf_tokenizer.write(file, folder)
    config = shape.config(gguf_tokenizer.eos_ids(file), gguf_tokenizer.bos_id(file))
    quantization = gguf_weights.quantization(file) if precision == "keep" else None
    if quantization is not None:
        config |= {"quantization": quantization, "quantization_config": quantization}
    _write_json(folder / "config.json", config)
    _write_json(folder / PROVENANCE, _origin(file.path, file.size_bytes) | {"precision": precision})


def _arrays(plan: _Plan, progress: Progress) -> Iterator[npt.NDArray[Any]]:
    done, total = 0, max(plan.nbytes, 1)
    for piece in plan.pieces:
        progress(0.02 + 0.92 * done / total, "converting the weights")
        yield from piece.arrays()
        done += sum(spec.nbytes for spec in piece.specs)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------- places


@contextlib.contextmanager
def _only_import(models_dir: Path, progress: Progress) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it when a process dies."""
    with (models_dir / _LOCK).open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(0.01, "waiting for another import")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(models_dir: Path) -> None:
    """Whoever holds the lock knows that no other import is under way."""
    for folder in models_dir.glob(f"{store.TEMPORARY_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _temporary_folder(models_dir: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=store.TEMPORARY_PREFIX, dir=models_dir))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, target: Path) -> None:
    if target.exists():
        target.rename(Path(tempfile.mkdtemp(prefix=store.TEMPORARY_PREFIX, dir=target.parent)))
    folder.rename(target)
    _remove_leftovers(target.parent)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(models_dir: Path, nbytes: int, free_bytes: Callable[[Path], int]) -> None:
    needed = nbytes + _SPARE_BYTES
    free = free_bytes(models_dir)
    if free < needed:
        raise ModelError(
            "There is not enough space on the disk",
            why=f"the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            next_step=f"free some space on the disk of {models_dir}",
        )


def _disk_problem(error: OSError, models_dir: Path) -> ModelError:
    if error.errno in _FULL:
        return ModelError(
            "The disk is full",
            why="the import did not fit; nothing of it was kept",
            next_step=f"free some space on the disk of {models_dir}",
        )
    return ModelError(
        f"The model cannot be written to {models_dir}",
        why=error.strerror or str(error),
        next_step="check that the directory is yours and can be written",
    )
