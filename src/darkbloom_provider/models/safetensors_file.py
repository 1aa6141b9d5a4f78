"""The safetensors file format: a writer that streams, and a reader of the header alone.

Format: eight bytes with the header's length (little endian), the header as JSON (tensor name to
type, shape and byte range; `__metadata__` to text), then the tensors' bytes one after the other.
Writing tensor by tensor keeps memory flat whatever the model's size, and makes a full disk an
ordinary `OSError`.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

DType = Literal["F32", "U32"]

_NUMPY: Mapping[DType, np.dtype[Any]] = MappingProxyType(
    {"F32": np.dtype("<f4"), "U32": np.dtype("<u4")}
)
_MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own reader."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: all but its numbers."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its numbers in bytes."""
        return math.prod(self.shape) * _NUMPY[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself."""

    metadata: Mapping[str, str]
    tensors: tuple[str, ...]
    file_size: int
    """Bytes the file must have."""
    sizes: tuple[int, ...] = ()
    """Bytes of each of the tensors, in their order."""


def write(
    path: Path,
    specs: Sequence[TensorSpec],
    arrays: Iterable[npt.NDArray[Any]],
    *,
    metadata: Mapping[str, str],
) -> int:
    """Write a file, durable when this returns, and return its size in bytes.

    Args:
        path: Where; replaced if it exists.
        specs: The tensors, in the order they are written.
        arrays: Their numbers, in the same order. May be a generator: one is held at a time.
        metadata: Text to put beside them; mlx-lm looks for `format = "mlx"`.

    Raises:
        OSError: The disk is full, or cannot be written.
        ValueError: An array does not fit its spec.
    """
    header = _header(specs, metadata)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)))
        file.write(header)
        for spec, array in zip(specs, arrays, strict=True):
            if tuple(array.shape) != spec.shape:
                raise ValueError(f"{spec.name} has shape {array.shape}, not {spec.shape}")
            file.write(np.ascontiguousarray(array, dtype=_NUMPY[spec.dtype]).data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for spec in specs:
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the numbers start aligned


def read_header(path: Path) -> Header:
    """Read what the file says about itself, without its tensors.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:  # noqa: PLR2004 - the length field
            raise ValueError("shorter than its header")
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER:
            raise ValueError("not a safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("shorter than its header")
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        ranges = [[int(edge) for edge in entry["data_offsets"]] for entry in entries.values()]
        end = max((last for _, last in ranges), default=0)
        sizes = tuple(last - first for first, last in ranges)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
        raise ValueError("not a safetensors file") from None
    return Header(
        metadata=metadata, tensors=tuple(entries), file_size=8 + length + end, sizes=sizes
    )
