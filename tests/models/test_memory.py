"""What is reckoned from a config against what mlx-lm's own models really keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models import memory
from darkbloom_provider.models.memory import Footprint, footprint

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "torch_dtype": "float32",
}
EXPERTS = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
}
SLIDING = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
LATENT = {
    "kv_lora_rank": 24,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": None,
    "num_key_value_heads": 4,
}
EXACT: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama with wide heads": {"model_type": "llama", "head_dim": 48},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "minimax": {
        "model_type": "minimax_m2",
        "head_dim": 32,
        "rotary_dim": 16,
        "shared_intermediate_size": 0,
        **EXPERTS,
    },
    "qwen3.5": {"model_type": "qwen3_5", "head_dim": 32, **LINEAR},
    "qwen3.5 inside another config": {
        "model_type": "qwen3_5",
        "text_config": {**BASE, "model_type": "qwen3_5_text", "head_dim": 32, **LINEAR},
    },
    "deepseek v3": {"model_type": "deepseek_v3", **LATENT},
}
WINDOWED: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "layer_types": SLIDING, "sliding_window": 32},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "sliding_window": 32,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
    },
    "gemma4": {
        "model_type": "gemma4_text",
        "head_dim": 16,
        "global_head_dim": 48,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "layer_types": SLIDING,
        "sliding_window": 32,
    },
    "gemma4 with shared layers": {
        "model_type": "gemma4_text",
        "head_dim": 16,
        "global_head_dim": 48,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 32,
    },
    "trinity": {
        "model_type": "afmoe",
        "head_dim": 16,
        "layer_types": SLIDING,
        "sliding_window": 32,
        "num_dense_layers": 4,
        **EXPERTS,
    },
}


def kept(config: dict[str, Any], tokens: int, piece: int = 16) -> int:
    """Bytes in the caches of a real model after so many tokens, without unused capacity."""
    classes = _get_classes(config)
    model = classes[0](classes[1].from_dict(config))
    cache = make_prompt_cache(model)
    for start in range(0, tokens, piece):
        model(mx.array([list(range(start, min(start + piece, tokens)))]) % 90, cache=cache)
        mx.eval([layer.state for layer in cache])
    rows = [type(layer).merge([layer]).extract(0) for layer in cache]
    return sum(row.nbytes for row in rows)


@pytest.mark.parametrize("name", EXACT)
def test_what_is_reckoned_is_exactly_what_is_kept(name: str) -> None:
    config = {**BASE, **EXACT[name]}
    for tokens in (1, 70):
        assert footprint(config, 0).row_bytes(tokens) == kept(config, tokens)


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("tokens", [8, 32, 90])
def test_a_window_stops_growing_but_for_the_piece_under_way(name: str, tokens: int) -> None:
    config = {**BASE, **WINDOWED[name]}
    real = kept(config, tokens)
    assert footprint(config, 0).row_bytes(tokens) <= real
    assert real <= footprint(config, 0).row_bytes(tokens, slack=16)
    if tokens == 8:
        assert footprint(config, 0).row_bytes(tokens) == real


def test_a_model_that_nobody_knows_is_reckoned_as_full_attention_in_every_layer() -> None:
    known = footprint({**BASE, **WINDOWED["llama"]}, 0)
    unknown = footprint({**BASE, **WINDOWED["llama"], "model_type": "from-next-year"}, 0)
    assert unknown.row_bytes(1000) > known.row_bytes(1000)
    assert unknown.row_bytes(1000) == footprint({**BASE, "model_type": "llama"}, 0).row_bytes(1000)


def test_a_config_that_tells_nothing_is_reckoned_as_the_network_does() -> None:
    assert footprint({"model_type": "x"}, 7).bytes_per_token == memory.UNKNOWN_BYTES_PER_TOKEN


def test_half_precision_keeps_half() -> None:
    wide, half = (footprint({**BASE, "torch_dtype": t}, 0) for t in ("float32", "bfloat16"))
    assert wide.row_bytes(100) == 2 * half.row_bytes(100)


def test_a_batch_is_as_long_as_its_longest_request_in_every_row() -> None:
    model = footprint({**BASE, "model_type": "llama"}, 0)
    assert model.batch_bytes(3, 100, slack=0) == 3 * model.row_bytes(100)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = st.sampled_from([*BASE, *LINEAR, *LATENT, "layer_types", "sliding_window", "text_config"])
TYPES = st.sampled_from(["llama", "gemma3_text", "gemma4", "qwen3_5", "deepseek_v3", "gpt_oss", ""])


@given(st.dictionaries(KEYS, JSON), TYPES)
def test_no_config_makes_the_reckoning_fail_or_free_of_charge(
    config: dict[str, Any], kind: str
) -> None:
    found = footprint({**config, "model_type": kind}, 5)
    assert isinstance(found, Footprint)
    assert found.row_bytes(1000, 256) > 0
    assert found.work_per_token(1000, metal=False) > 0


def test_a_folder_is_measured_by_its_config_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1234)
    assert memory.measure(tmp_path).weight_bytes == 1234
    with pytest.raises(ModelError):
        memory.measure(tmp_path / "nowhere")
