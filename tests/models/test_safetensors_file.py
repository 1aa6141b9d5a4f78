from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from darkbloom_provider.models import safetensors_file
from darkbloom_provider.models.safetensors_file import TensorSpec


def test_what_is_written_is_read_by_mlx(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    specs = [TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "U32", (4,))]
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.uint32)]
    size = safetensors_file.write(path, specs, iter(arrays), metadata={"format": "mlx"})
    loaded: Any = mx.load(str(path))
    assert np.array_equal(np.array(loaded["a"]), arrays[0])
    assert np.array_equal(np.array(loaded["b"]), arrays[1])
    header = safetensors_file.read_header(path)
    assert header.metadata == {"format": "mlx"}
    assert header.tensors == ("a", "b")
    assert header.file_size == size == path.stat().st_size


def test_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    spec = TensorSpec("a", "F32", (2,))
    with pytest.raises(ValueError, match="shape"):
        safetensors_file.write(tmp_path / "x", [spec], [np.zeros(3)], metadata={})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10\0\0\0\0\0\0\0{}",
        b"\xff" * 16,
        b"\x02\0\0\0\0\0\0\0[]",
        b'\x08\0\0\0\0\0\0\0{"a": 1}',
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - each kind of damage says so differently
        safetensors_file.read_header(path)
