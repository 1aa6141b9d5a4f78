"""Models of every kind of cache that mlx-lm has, made of random numbers in milliseconds.

The classes are mlx-lm's own: only the sizes and the numbers are ours. Tokenizer, vocabulary and
what may be said are those of `support.tiny_model`: greedy output is printable ASCII and never ends
by itself.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_tokenizer

from darkbloom_provider.engine import trial
from darkbloom_provider.engine.loading import Weights
from support.tiny_model import CONTEXT_LENGTH, silent_tokens

WINDOW = 16
"""Tokens that a sliding window looks back."""
_HIDDEN = 32
_ATTENTION: dict[str, Any] = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": CONTEXT_LENGTH,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
_DELTA_NET: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "head_dim": 8,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    # attention over everything, a choice of experts
    "qwen3_moe": {
        **_ATTENTION,
        **_EXPERTS,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "tie_word_embeddings": False,
    },
    # a sliding window and attention over everything in turn
    "gemma3_text": {
        **_ATTENTION,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
    },
    # the same with attention sinks and experts
    "gpt_oss": {
        **_ATTENTION,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": None,
    },
    # a recurrent state and attention over everything in turn
    "qwen3_5": {
        "text_config": {
            **_ATTENTION,
            **_DELTA_NET,
            "model_type": "qwen3_5_text",
            "num_hidden_layers": 4,
            "rope_parameters": {
                "type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    },
    # the same with experts
    "qwen3_next": {
        **_ATTENTION,
        **_EXPERTS,
        **_DELTA_NET,
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 32,
        "partial_rotary_factor": 0.5,
    },
    # recurrent states only
    "mamba2": {
        "hidden_size": _HIDDEN,
        "num_heads": 8,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-5,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 2,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
        "max_position_embeddings": CONTEXT_LENGTH,
        "intermediate_size": 64,
    },
    # both in each layer: lists of a recurrent state and a cache
    "falcon_h1": {
        **_ATTENTION,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "mamba_d_conv": 4,
        "mamba_d_head": 8,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
        "mamba_n_heads": 8,
        "tie_word_embeddings": False,
    },
    # lists of two caches
    "longcat_flash": {
        "attention_method": "MLA",
        "hidden_size": _HIDDEN,
        "ffn_hidden_size": 64,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 32,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "num_layers": 2,
        "num_attention_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "routed_scaling_factor": 1.0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_LENGTH,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_bias": False,
        "zero_expert_type": "identity",
    },
}
_ALONE: dict[str, dict[str, Any]] = {
    # attention with a cap, written for a mask of one row
    "gemma2": {**_ATTENTION, "num_hidden_layers": 2, "head_dim": 8},
    # a recurrent state that takes padding for text
    "recurrent_gemma": {
        **_ATTENTION,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "attention_bias": False,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
    },
}
_UNBATCHABLE: dict[str, dict[str, Any]] = {
    # attention within chunks
    "llama4": {
        "text_config": {
            **_ATTENTION,
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "head_dim": 8,
            "attention_bias": False,
            "attention_chunk_size": WINDOW,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 64,
            "num_experts_per_tok": 1,
            "num_local_experts": 4,
            "rope_scaling": None,
            "use_qk_norm": True,
        },
    },
    # a window and what is left of everything before it
    "deepseek_v41": {
        **_ATTENTION,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "o_groups": 2,
        "o_lora_rank": 8,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "index_n_heads": 2,
        "index_head_dim": 8,
    },
}
FAMILIES = tuple(_CONFIGS)
"""Model types, as in the config.json of a model, whose requests are computed together."""
ALONE = tuple(_ALONE)
"""Those that answer one request at a time."""
UNBATCHABLE = tuple(_UNBATCHABLE)
"""Those that are not served."""


def build_family(family: str, tiny_model: Path, *, seed: int = 3) -> Weights:
    """A model of the family, with the tokenizer of the folder `tiny_model`."""
    tokenizer = load_tokenizer(tiny_model, {"local_files_only": True})
    vocabulary = tokenizer.get_vocab()
    model = _model(_config(family, len(vocabulary)), vocabulary, seed)
    return Weights(
        model=model,
        tokenizer=tokenizer,
        context_length=CONTEXT_LENGTH,
        weight_bytes=sum(array.nbytes for _, array in tree_flatten(model.parameters())),
        vocabulary_size=len(vocabulary),
        keeps_company=trial.keeps_company(model),
    )


def save_family(family: str, tiny_model: Path, path: Path, *, seed: int = 3) -> Path:
    """The same as a model's folder, written to `path`."""
    shutil.copytree(tiny_model, path)
    vocabulary = load_tokenizer(tiny_model, {"local_files_only": True}).get_vocab()
    config = _config(family, len(vocabulary))
    model = _model(config, vocabulary, seed)
    mx.save_safetensors(
        str(path / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        metadata={"format": "mlx"},
    )
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def _config(family: str, vocabulary: int) -> dict[str, Any]:
    sizes = {**_CONFIGS, **_ALONE, **_UNBATCHABLE}[family]
    config = {"model_type": family, "vocab_size": vocabulary, **sizes}
    if "text_config" in config:
        config["text_config"] = {**config["text_config"], "vocab_size": vocabulary}
    return config


def _model(config: dict[str, Any], vocabulary: dict[str, int], seed: int) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    parameters = tree_flatten(model.parameters())
    untied = any("lm_head" in name for name, _ in parameters)
    silent = mx.array(silent_tokens(vocabulary))
    key = mx.random.key(seed)
    numbers = []
    for name, array in parameters:
        key, own = mx.random.split(key)
        numbers.append((name, _numbers(name, array, own, silent, untied=untied)))
    model.update(tree_unflatten(numbers))
    model.eval()
    mx.eval(model.parameters())
    return model


def _numbers(name: str, like: Any, key: Any, silent: Any, *, untied: bool) -> Any:
    if like.ndim == 1:
        return like
    array = mx.random.normal(like.shape, key=key)
    if "lm_head" in name or ("embed" in name and not untied):
        # Logits so far apart that sums in another order change nothing.
        array = array * (3 / math.sqrt(like.shape[-1]))
        array[silent] = 0
    elif "conv" in name:
        array = array * 0.5
    elif "embed" not in name:
        # Strong enough that the next token depends on more than the last one.
        array = array * (2 / math.sqrt(like.shape[-1]))
    return array
