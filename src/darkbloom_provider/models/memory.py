"""What a model takes in memory, computed from its `config.json`. Pure; all sizes in bytes.

Weights are what the files hold. Beside them every request keeps what the model remembers of its
tokens, and how much that is depends on the kind of each layer: attention over everything grows by
keys and values with every token (fewer of them where heads are grouped), a sliding window stops
growing when it is full, latent attention keeps one compressed row, and a linear layer keeps a state
of fixed size. The kinds are those that mlx-lm's models make; a model that is not listed here is
reckoned as full attention in every layer, which is never less than it takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darkbloom_provider.errors import ModelError

UNKNOWN_BYTES_PER_TOKEN = 400_000
"""For a config that does not even tell its layers: what the network's coordinator assumes."""
UNKNOWN_WORK_PER_TOKEN = 2_000_000
_GROWTH = 256
"""Tokens by which mlx-lm's caches grow at a time."""
_STATE_BYTES = 4
"""Recurrent states are kept in 32 bits."""
_FUSED_HEADS = frozenset({64, 80, 128})
"""Sizes of heads for which Metal's attention never writes down its scores."""

_WINDOWED = frozenset(
    {"afmoe", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gpt_oss", "llama"}
)
"""Model types whose sliding layers really forget in mlx-lm; others keep everything there."""
_GEMMA_HEAD, _GEMMA4_GLOBAL_HEAD = 256, 512
"""What mlx-lm takes where a Gemma's config does not say."""
_LINEAR = frozenset({"qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"})
_LATENT = frozenset({"deepseek_v3", "kimi_k2"})
_DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps for one request."""

    per_token: int = 0
    window: int | None = None
    """Tokens after which it grows no more; None grows for ever."""
    fixed: int = 0

    def bytes_for(self, tokens: int, slack: int) -> int:
        """At `tokens`, with room for `slack` tokens that padding and growth may add."""
        kept = tokens if self.window is None else min(tokens, self.window)
        return self.fixed + self.per_token * (kept + slack)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes, by request."""

    weight_bytes: int
    layers: tuple[LayerShape, ...]
    activation_bytes: int
    """Intermediate results for one token on its way through a layer."""
    score_bytes: int
    """Attention scores for one pair of tokens, where they are written down."""
    fused: bool
    """Whether Metal's attention avoids that."""
    vocabulary: int

    @property
    def bytes_per_token(self) -> int:
        """What one more token of a short request takes."""
        return sum(layer.per_token for layer in self.layers)

    def row_bytes(self, tokens: int, slack: int = 0) -> int:
        """What is kept for a request of `tokens`, prompt and completion together.

        Args:
            tokens: In the model's cache.
            slack: Tokens for which a batch makes room beyond the longest of its requests.
        """
        return sum(layer.bytes_for(tokens, slack) for layer in self.layers)

    def batch_bytes(self, rows: int, longest: int, slack: int = _GROWTH) -> int:
        """What a batch keeps: every row is as long as its longest."""
        return rows * self.row_bytes(longest, slack)

    def work_per_token(self, context: int, *, metal: bool) -> int:
        """Intermediate results for one token of a prompt that attends to `context` tokens."""
        scores = 0 if metal and self.fused else self.score_bytes * context
        return self.activation_bytes + scores

    def decode_work(self, rows: int) -> int:
        """Intermediate results for one step of `rows` requests: logits and what sampling makes."""
        return rows * (self.activation_bytes + 4 * 4 * self.vocabulary)


def measure(folder: Path) -> Footprint:
    """The footprint of the model in an mlx-lm folder, from its config and the size of its files.

    Raises:
        ModelError: The folder or its config cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        weights = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is not a model folder", why="its config.json cannot be read"
        ) from error
    return footprint(config if isinstance(config, dict) else {}, weights)


def footprint(config: Mapping[str, Any], weight_bytes: int) -> Footprint:
    """The footprint of a model with this config."""
    inner = config.get("text_config")
    # Models that also see keep the language part apart; what it does not say stands outside.
    text: dict[str, Any] = {**config, **(inner if isinstance(inner, Mapping) else {})}
    kind = str(config.get("model_type") or text.get("model_type") or "")
    width = _width(text)
    layers = _layers(kind, text, width)
    heads, hidden = _number(text, "num_attention_heads"), _number(text, "hidden_size")
    if not (layers and heads and hidden):
        unknown = (LayerShape(per_token=UNKNOWN_BYTES_PER_TOKEN),)
        return Footprint(weight_bytes, unknown, UNKNOWN_WORK_PER_TOKEN, 256, False, 262_144)
    return Footprint(
        weight_bytes=weight_bytes,
        layers=layers,
        activation_bytes=width * (6 * hidden + 4 * _inner(text) + 4 * heads * _head(text)),
        # Scores and their softmax, in 32 bits.
        score_bytes=2 * 4 * heads,
        fused=_head(text) in _FUSED_HEADS and kind not in _LATENT,
        vocabulary=_number(text, "vocab_size") or 262_144,
    )


def _layers(kind: str, text: Mapping[str, Any], width: int) -> tuple[LayerShape, ...]:
    count = _number(text, "num_hidden_layers")
    if not count or not _number(text, "num_attention_heads") or not _number(text, "hidden_size"):
        return ()
    if kind in _LATENT and (rank := _number(text, "kv_lora_rank")):
        return (LayerShape((rank + _number(text, "qk_rope_head_dim")) * width),) * count
    if kind in _LINEAR and _number(text, "linear_num_value_heads"):
        return tuple(_hybrid(text, width, index) for index in range(count))
    if kind in _WINDOWED:
        shared = _number(text, "num_kv_shared_layers") if kind.startswith("gemma4") else 0
        return tuple(_windowed(kind, text, width, index) for index in range(count - shared))
    return (LayerShape(_everything(text) * width),) * count


def _everything(text: Mapping[str, Any]) -> int:
    """Numbers kept per token by a layer of attention over everything, of no matter what kind."""
    heads = _number(text, "num_attention_heads")
    kv_heads = _number(text, "num_key_value_heads") or heads
    plain = 2 * kv_heads * _head(text)
    split = _number(text, "qk_nope_head_dim") + _number(text, "qk_rope_head_dim")
    if split:  # latent attention that may be kept unpacked
        return max(plain, heads * (split + _number(text, "v_head_dim")))
    return plain


def _hybrid(text: Mapping[str, Any], width: int, index: int) -> LayerShape:
    """Qwen3.5 and Qwen3-Next: linear layers with full attention in between."""
    interval = _number(text, "full_attention_interval") or 4
    if (index + 1) % interval == 0:
        return LayerShape(_everything(text) * width)
    keys = _number(text, "linear_num_key_heads") * _number(text, "linear_key_head_dim")
    values = _number(text, "linear_num_value_heads") * _number(text, "linear_value_head_dim")
    convolution = (_number(text, "linear_conv_kernel_dim") - 1) * (2 * keys + values) * width
    state = values * _number(text, "linear_key_head_dim") * _STATE_BYTES
    return LayerShape(fixed=convolution + state)


def _windowed(kind: str, text: Mapping[str, Any], width: int, index: int) -> LayerShape:
    """Llama, Gemma, Trinity, gpt-oss: some layers look back over a window only."""
    if not _slides(kind, text, index):
        per_token = _everything(text)
        if kind.startswith("gemma4"):
            wide = _number(text, "global_head_dim") or _GEMMA4_GLOBAL_HEAD
            kv_heads = _number(text, "num_key_value_heads") or 1
            if text.get("attention_k_eq_v"):
                kv_heads = _number(text, "num_global_key_value_heads") or kv_heads
            per_token = 2 * kv_heads * wide
        return LayerShape(per_token * width)
    return LayerShape(_everything(text) * width, window=_number(text, "sliding_window"))


def _slides(kind: str, text: Mapping[str, Any], index: int) -> bool:
    if not _number(text, "sliding_window"):
        return False
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and not kind.startswith("gemma3"):
        return index < len(kinds) and kinds[index] == "sliding_attention"
    if kind.startswith("gemma"):
        pattern = _number(text, "sliding_window_pattern") or (6 if kind[5] == "3" else 5)
        return (index + 1) % pattern != 0
    return kind == "gpt_oss" and index % 2 == 0


def _head(text: Mapping[str, Any]) -> int:
    if head := _number(text, "head_dim"):
        return head
    if str(text.get("model_type", "")).startswith("gemma"):
        return _GEMMA_HEAD
    heads = _number(text, "num_attention_heads")
    return _number(text, "hidden_size") // heads if heads else 0


def _inner(text: Mapping[str, Any]) -> int:
    """The widest row inside a layer: the dense block's, or that of the experts together."""
    experts = _number(text, "num_experts_per_tok") or _number(text, "top_k_experts")
    each = _number(text, "moe_intermediate_size") or _number(text, "intermediate_size")
    return max(_number(text, "intermediate_size"), (experts + 1) * each if experts else 0)


def _width(text: Mapping[str, Any]) -> int:
    """Bytes of one number in the caches: that of the activations."""
    return _DTYPES.get(str(text.get("torch_dtype") or text.get("dtype")), 4)


def _number(text: Mapping[str, Any], name: str) -> int:
    value = text.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
