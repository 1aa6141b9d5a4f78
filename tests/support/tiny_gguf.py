"""A llama of random numbers as a GGUF file, in the types a test asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 64, 2, 4, 2, 128, 256
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def build_tiny_gguf(
    path: Path,
    *,
    linear: GGMLQuantizationType = GGMLQuantizationType.Q4_1,
    embedding: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    metadata: dict[str, Any] | None = None,
    without: str = "",
) -> Path:
    """Write the file and return its path.

    Args:
        path: Where.
        linear: Type of all matrices but the embedding.
        embedding: Type of the embedding, which is the output layer as well.
        metadata: Text and whole numbers that replace or add to the usual ones.
        without: Name of a tensor to leave out.
    """
    random = np.random.default_rng(3)
    tokens = _tokens()
    values: dict[str, Any] = {
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INNER,
        "llama.block_count": LAYERS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.context_length": CONTEXT,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "general.name": "Tiny Llama",
    } | (metadata or {})
    writer = gguf.GGUFWriter(path, values.pop("general.architecture", "llama"))
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e"])
    for name, shape in _shapes(len(tokens)).items():
        if name == without:
            continue
        kind = embedding if name == "token_embd.weight" else linear
        numbers = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, 1 + numbers / 10)
        else:
            numbers /= np.float32(np.sqrt(shape[-1]))
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tokens() -> list[str]:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return ["<|start|>", "<|end|>", *alphabet, "th", "the", *(f"<{n}>" for n in range(60))]


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    keys = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (HIDDEN,),
            f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": (keys, HIDDEN),
            f"blk.{layer}.attn_v.weight": (keys, HIDDEN),
            f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
            f"blk.{layer}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down.weight": (HIDDEN, INNER),
        }
    return shapes
