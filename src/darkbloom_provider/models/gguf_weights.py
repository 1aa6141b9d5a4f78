"""From GGUF tensors to mlx-lm weights: dequantised, or repacked into MLX's own quantised layout.

Repacking is exact. GGUF's Q4_0, Q4_1 and Q8_0 and MLX's affine quantisation in groups of 32 are
the same idea, `number = q * scale + bias`, with the bits in another order:

* Q4_0: scale d and 16 bytes; `(q - 8) * d`. Q4_1: d, m and 16 bytes; `q * d + m`. Byte i of the 16
  holds number i in its low half and number i + 16 in its high half.
* Q8_0: d and 32 signed bytes; `q * d`.
* MLX: 32-bit words, the first number in the lowest bits; unsigned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from darkbloom_provider.models.gguf_file import GgufFile, GgufTensor, row_order
from darkbloom_provider.models.gguf_llama import (
    LlamaShape,
    module_name,
    rotated_heads,
    unsupported_type,
)
from darkbloom_provider.models.safetensors_file import TensorSpec

Array = npt.NDArray[Any]
Precision = Literal["fp32", "keep"]

GROUP = 32
"""Numbers that share a scale, in GGUF's simple types and in what is written."""
_PLAIN = frozenset({"F32", "F16", "BF16"})
_KEPT_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


@dataclass(frozen=True, slots=True)
class Piece:
    """What one GGUF tensor becomes: one array, or weight, scales and biases."""

    specs: tuple[TensorSpec, ...]
    arrays: Callable[[], tuple[Array, ...]]
    """Reads and converts. Called once, when it is written."""


def can_keep(file: GgufFile) -> bool:
    """Whether every tensor is stored in a way MLX can compute with as it is."""
    return all(
        tensor.type_name in _PLAIN or tensor.type_name in _KEPT_BITS for tensor in file.tensors
    )


def pieces(file: GgufFile, shape: LlamaShape, precision: Precision) -> Iterator[Piece]:
    """The conversion of every tensor, in the file's order.

    Raises:
        ModelError: A tensor's type is not supported, or not with this precision.
    """
    for tensor in file.tensors:
        module = str(module_name(tensor.name))
        heads = rotated_heads(module, shape)
        if precision == "keep" and tensor.type_name in _KEPT_BITS:
            yield _kept(tensor, module, heads)
        elif precision == "keep" and tensor.type_name not in _PLAIN:
            raise unsupported_type(file, tensor.name, f"{tensor.type_name} with precision keep")
        else:
            _check_dequantisable(file, tensor)
            spec = TensorSpec(f"{module}.weight", "F32", tensor.shape)
            yield Piece((spec,), partial(_dequantised, tensor, heads))


def quantization(file: GgufFile) -> dict[str, Any] | None:
    """The `quantization` part of `config.json` for `keep`; None if nothing is quantised."""
    bits = {
        str(module_name(tensor.name)): _KEPT_BITS[tensor.type_name]
        for tensor in file.tensors
        if tensor.type_name in _KEPT_BITS
    }
    if not bits:
        return None
    usual = Counter(bits.values()).most_common(1)[0][0]
    others = {
        module: {"group_size": GROUP, "bits": count}
        for module, count in bits.items()
        if count != usual
    }
    return {"group_size": GROUP, "bits": usual, **others}


def repack(data: npt.NDArray[np.uint8], type_name: str) -> tuple[Array, Array, Array]:
    """Packed words, scales and biases of quantised rows.

    Args:
        data: One row of bytes for each row of the tensor.
        type_name: `Q4_0`, `Q4_1` or `Q8_0`.

    Returns:
        Words (rows x columns * bits / 32, uint32), scales and biases (rows x columns / 32, float32;
        the file's half precision numbers, exactly).
    """
    rows = data.shape[0]
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[type_name]
    blocks = np.ascontiguousarray(data).reshape(rows, -1, size)
    scales = _half(blocks, 0)
    if type_name == "Q8_0":
        unsigned = (blocks[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
        return _words(unsigned.reshape(rows, -1)), scales, scales * np.float32(-128)
    at, biases = (4, _half(blocks, 2)) if type_name == "Q4_1" else (2, scales * np.float32(-8))
    nibbles = blocks[..., at:]
    ordered = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    packed = (ordered[..., 0::2] | (ordered[..., 1::2] << 4)).astype(np.uint8)
    return _words(packed.reshape(rows, -1)), scales, biases


def _half(blocks: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.float32]:
    pair = np.ascontiguousarray(blocks[..., at : at + 2])
    return pair.view("<f2")[..., 0].astype(np.float32)


def _words(packed: npt.NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray(packed).view("<u4")


def _kept(tensor: GgufTensor, module: str, heads: int | None) -> Piece:
    rows, columns = tensor.shape
    bits = _KEPT_BITS[tensor.type_name]
    groups = (rows, columns // GROUP)
    specs = (
        TensorSpec(f"{module}.weight", "U32", (rows, columns * bits // 32)),
        TensorSpec(f"{module}.scales", "F32", groups),
        TensorSpec(f"{module}.biases", "F32", groups),
    )
    return Piece(specs, partial(_repacked, tensor, heads))


def _repacked(tensor: GgufTensor, heads: int | None) -> tuple[Array, ...]:
    arrays = repack(tensor.data, tensor.type_name)
    if heads is None:
        return arrays
    order = row_order(tensor.shape[0], heads)
    return tuple(array[order] for array in arrays)


def _dequantised(tensor: GgufTensor, heads: int | None) -> tuple[Array, ...]:
    import gguf  # noqa: PLC0415 - takes a while, and only imports need it

    kind = gguf.GGMLQuantizationType[tensor.type_name]
    array: Array = gguf.quants.dequantize(tensor.data, kind).reshape(tensor.shape)
    array = array.astype(np.float32, copy=False)
    return (array if heads is None else array[row_order(tensor.shape[0], heads)],)


def _check_dequantisable(file: GgufFile, tensor: GgufTensor) -> None:
    """Ask for a type's decoder before anything is written."""
    import gguf  # noqa: PLC0415 - takes a while, and only imports need it

    first = tensor.data[:1] if tensor.data.ndim > 1 else tensor.data
    try:
        gguf.quants.dequantize(first, gguf.GGMLQuantizationType[tensor.type_name])
    except NotImplementedError:
        raise unsupported_type(file, tensor.name, tensor.type_name) from None
