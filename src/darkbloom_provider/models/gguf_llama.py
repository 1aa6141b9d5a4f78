"""The llama architecture in GGUF: its shape, and the mlx-lm name of each of its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models.gguf_file import GgufFile, unusable

_TOP = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
)
_BLOCK = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes and constants of a llama model."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    vocabulary: int
    tied: bool
    """Whether the embedding is the output layer as well."""

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the model needs: its mlx-lm module, and its shape."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens": (self.vocabulary, self.hidden),
            "model.norm": (self.hidden,),
        }
        if not self.tied:
            shapes["lm_head"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
        return shapes

    def config(self, eos: list[int], bos: int | None) -> dict[str, Any]:
        """The model's `config.json`, without quantisation."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.context_length,
            "vocab_size": self.vocabulary,
            "eos_token_id": eos,
            "tie_word_embeddings": self.tied,
            "attention_bias": False,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        } | ({} if bos is None else {"bos_token_id": bos})


def shape_of(file: GgufFile) -> LlamaShape:
    """The model's shape, checked against the tensors that are there.

    Raises:
        ModelError: Another architecture, a variant that would compute something else (experts,
            scaled rotary embedding, more tensors), or tensors missing or of another shape.
    """
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise unusable(
            file.path, f"its architecture is {architecture}, and only llama is supported"
        )
    if file.get("split.count", int, 1) > 1:
        raise unusable(file.path, "it is one part of several", next_step="merge the parts first")
    if file.get("llama.expert_count", int, 0) > 0:
        raise unusable(file.path, "it is a mixture of experts")
    if file.get("llama.rope.scaling.type", str, "none") != "none":
        raise unusable(file.path, "it scales its rotary embedding")
    tensors = {tensor.name: tensor for tensor in file.tensors}
    if "token_embd.weight" not in tensors:
        raise unusable(file.path, "token_embd.weight is missing")
    shape = _from_metadata(file, tensors["token_embd.weight"].shape[0], "output.weight" in tensors)
    _check_tensors(file, shape)
    return shape


def _from_metadata(file: GgufFile, vocabulary: int, has_output: bool) -> LlamaShape:
    hidden = file.get("llama.embedding_length", int)
    heads = file.get("llama.attention.head_count", int)
    if heads < 1 or hidden < 1:
        raise unusable(file.path, "its sizes make no sense")
    head_dim = file.get("llama.attention.key_length", int, hidden // heads)
    if file.get("llama.rope.dimension_count", int, head_dim) != head_dim or head_dim % 2:
        raise unusable(file.path, "its rotary embedding covers a part of each head only")
    return LlamaShape(
        layers=file.get("llama.block_count", int),
        hidden=hidden,
        inner=file.get("llama.feed_forward_length", int),
        heads=heads,
        kv_heads=file.get("llama.attention.head_count_kv", int, heads),
        head_dim=head_dim,
        context_length=file.get("llama.context_length", int),
        rms_norm_eps=file.get("llama.attention.layer_norm_rms_epsilon", float),
        rope_theta=file.get("llama.rope.freq_base", float, 10_000.0),
        vocabulary=vocabulary,
        tied=not has_output,
    )


def _check_tensors(file: GgufFile, shape: LlamaShape) -> None:
    wanted = shape.tensor_shapes()
    for tensor in file.tensors:
        name = module_name(tensor.name)
        if name is None or name not in wanted:
            raise unusable(file.path, f"it has a tensor {tensor.name}, which llama does not know")
        expected = wanted.pop(name)
        if tensor.shape != expected:
            raise unusable(file.path, f"{tensor.name} has shape {tensor.shape}, not {expected}")
    if wanted:
        raise unusable(file.path, f"the tensor of {min(wanted)} is missing")


def module_name(tensor: str) -> str | None:
    """The mlx-lm module of a tensor, or None for one that llama does not have.

    >>> module_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj'
    """
    if (match := _BLOCK_NAME.fullmatch(tensor)) is not None:
        known = _BLOCK.get(match.group(2))
        return None if known is None else f"model.layers.{int(match.group(1))}.{known}"
    return _TOP.get(tensor.removesuffix(".weight")) if tensor.endswith(".weight") else None


def rotated_heads(module: str, shape: LlamaShape) -> int | None:
    """Heads whose rows are stored interleaved in this module; None if it has none."""
    if module.endswith("self_attn.q_proj"):
        return shape.heads
    if module.endswith("self_attn.k_proj"):
        return shape.kv_heads
    return None


def unsupported_type(file: GgufFile, tensor: str, type_name: str) -> ModelError:
    """The error for a tensor whose numbers are stored in a way that is not understood."""
    return unusable(file.path, f"{tensor} is stored as {type_name}, which is not supported")
