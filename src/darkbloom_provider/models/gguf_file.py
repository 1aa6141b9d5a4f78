"""Reading a GGUF file: its metadata and where its tensors lie, every surprise as a `ModelError`.

Format: the GGUF specification, version 2 and 3, little endian; the package `gguf` parses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from darkbloom_provider.errors import ModelError

_MAGIC = b"GGUF"

Value = TypeVar("Value", int, float, str)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as it lies in the file, mapped, not read."""

    name: str
    type_name: str
    """`F32`, `Q4_1` and the like."""
    shape: tuple[int, ...]
    """Rows first, as numpy counts; the file itself counts columns first."""
    data: npt.NDArray[Any]
    """Numbers, or for quantised types one row of bytes for each row."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A whole file."""

    path: Path
    size_bytes: int
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]

    def get(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """A piece of metadata.

        Raises:
            ModelError: It is absent and has no default, or is of another kind.
        """
        value = self.metadata.get(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise unusable(self.path, f"{key} is {'missing' if value is None else 'malformed'}")
        return value

    def list_of(self, key: str, kind: type[Value]) -> Sequence[Value]:
        """A list in the metadata.

        Raises:
            ModelError: It is absent, or not a list of that kind.
        """
        values = self.metadata.get(key)
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise unusable(self.path, f"{key} is {'missing' if values is None else 'malformed'}")
        return values


def probe(path: Path) -> int:
    """The size in bytes of what at least begins as a GGUF file.

    Raises:
        ModelError: It is not there, cannot be read, or is not GGUF.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist", next_step="check the path of the GGUF file"
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read", why=error.strerror) from error
    if magic != _MAGIC:
        raise ModelError(
            f"{path} is not a GGUF file",
            why="it does not begin with the letters GGUF",
            next_step="give the path of a .gguf file",
        )
    return size


def read(path: Path) -> GgufFile:
    """Open a GGUF file.

    Raises:
        ModelError: As `probe`, or it is damaged or cut off.
    """
    size = probe(path)
    import gguf  # noqa: PLC0415 - takes a while, and only imports need it

    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        tensors = tuple(
            GgufTensor(
                name=tensor.name,
                type_name=tensor.tensor_type.name,
                shape=tuple(int(n) for n in reversed(tensor.shape.tolist())),
                data=tensor.data,
            )
            for tensor in reader.tensors
        )
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        # What the parser makes of bytes that end too early or mean nothing.
        raise ModelError(
            f"{path} is damaged or cut off",
            why=f"{type(error).__name__} while reading its header ({size} bytes)",
            next_step="download the file again",
        ) from error
    return GgufFile(path=path, size_bytes=size, metadata=metadata, tensors=tensors)


def unusable(path: Path, why: str, *, next_step: str | None = None) -> ModelError:
    """The error for a file that is whole, but not one that can be imported."""
    return ModelError(
        f"{path.name} cannot be imported",
        why=why,
        next_step=next_step or "use a llama-architecture GGUF, or a model in MLX format",
    )


def row_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """The order that puts rows stored for interleaved rotary embedding back into halves.

    Per head the file stores rows 0, n/2, 1, n/2+1, …; MLX expects 0, 1, …, n-1.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)
