"""A llama of random numbers, small enough to build in each test session.

What tests may rely on:

* It is an mlx-lm folder like any other: config, weights, a byte-level BPE tokenizer that reads all
  of Unicode, and a chat template in the ChatML style.
* It is the same on every machine: the numbers come from a seeded generator.
* Greedy output is printable ASCII and never ends by itself: the output rows of the end-of-turn
  token, of all other special tokens and of all other bytes are zero, and some row of random numbers
  always beats zero. So a greedy request always ends at `max_tokens`, or at a stop string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from darkbloom_provider.models import safetensors_file
from darkbloom_provider.models.safetensors_file import TensorSpec

MODEL_ID = "tiny-random"
CONTEXT_LENGTH = 1024
"""Tokens of prompt and completion together."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

THINK, THINK_END = "<think>", "</think>"
THINKING_TEMPLATE = CHAT_TEMPLATE.replace(
    "{% endif %}",
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{% elif opens_thoughts %}{{ '<think>\\n' }}{% endif %}{% endif %}",
)
"""In the style of Qwen3: the model may think unless `enable_thinking` is false. With
`opens_thoughts` the prompt ends within them, as those of Qwen3's thinking models do."""

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
HARMONY_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    "{% if answers_at_once %}{{ '<|channel|>final<|message|>' }}{% endif %}"
)
"""In the style of gpt-oss. With `answers_at_once` the prompt ends in the answer's header."""

_HIDDEN, _LAYERS, _HEADS, _KV_HEADS, _INNER = 64, 2, 4, 2, 128
_TEXT = """
the and that have with this from they will would there their what about which when make like time
just know take into year good some could them other than then look only come over think also back
after work first well even want because these give most light water stone river
"""
_SHARPNESS = 3.0
"""Standard deviation of the logits: far enough apart that sums in another order change nothing."""


def build_tiny_model(
    path: Path, *, seed: int = 7, thinks: bool = False, channels: bool = False
) -> Path:
    """Write the model into the folder `path` (created) and return it.

    With `thinks` its vocabulary has the markers of thoughts, and its template is
    `THINKING_TEMPLATE`; with `channels` those of harmony and `HARMONY_TEMPLATE`. It never writes a
    marker unless a bias or a structure makes it.
    """
    path.mkdir(parents=True, exist_ok=True)
    more: tuple[str, ...] = ()
    template = CHAT_TEMPLATE
    if thinks:
        more, template = (THINK, THINK_END), THINKING_TEMPLATE
    elif channels:
        more, template = HARMONY, HARMONY_TEMPLATE
    tokenizer = _tokenizer((*SPECIAL, *more))
    tokenizer.save(str(path / "tokenizer.json"))
    _write_json(path / "tokenizer_config.json", _tokenizer_config(template))
    vocabulary = tokenizer.get_vocab_size()
    _write_json(path / "config.json", _config(tokenizer, vocabulary))
    specs = list(_specs(vocabulary))
    arrays = _arrays(specs, tokenizer, np.random.default_rng(seed))
    safetensors_file.write(path / "model.safetensors", specs, arrays, metadata={"format": "mlx"})
    return path


def _tokenizer(special: tuple[str, ...]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    merges: list[tuple[str, str]] = []
    words = _TEXT.split()
    # Letters become words first, then a word and the space before it become one token.
    pairs = [(word[:n], word[n]) for word in words for n in range(1, len(word))]
    for left, right in [*pairs, *(("Ġ", word) for word in words)]:
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return tokenizer


def _tokenizer_config(chat_template: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "bos_token": "<|im_start|>",
        "pad_token": EOS,
        "chat_template": chat_template,
        "model_max_length": CONTEXT_LENGTH,
        "clean_up_tokenization_spaces": False,
    }


def _config(tokenizer: Tokenizer, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "intermediate_size": _INNER,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_LENGTH,
        "vocab_size": vocabulary,
        "eos_token_id": tokenizer.token_to_id(EOS),
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _specs(vocabulary: int) -> Iterator[TensorSpec]:
    head = _HIDDEN // _HEADS
    yield TensorSpec("model.embed_tokens.weight", "F32", (vocabulary, _HIDDEN))
    for layer in range(_LAYERS):
        for name, shape in {
            "input_layernorm": (_HIDDEN,),
            "self_attn.q_proj": (_HEADS * head, _HIDDEN),
            "self_attn.k_proj": (_KV_HEADS * head, _HIDDEN),
            "self_attn.v_proj": (_KV_HEADS * head, _HIDDEN),
            "self_attn.o_proj": (_HIDDEN, _HEADS * head),
            "post_attention_layernorm": (_HIDDEN,),
            "mlp.gate_proj": (_INNER, _HIDDEN),
            "mlp.up_proj": (_INNER, _HIDDEN),
            "mlp.down_proj": (_HIDDEN, _INNER),
        }.items():
            yield TensorSpec(f"model.layers.{layer}.{name}.weight", "F32", shape)
    yield TensorSpec("model.norm.weight", "F32", (_HIDDEN,))
    yield TensorSpec("lm_head.weight", "F32", (vocabulary, _HIDDEN))


def _arrays(
    specs: list[TensorSpec], tokenizer: Tokenizer, random: np.random.Generator
) -> Iterator[npt.NDArray[np.float32]]:
    for spec in specs:
        if len(spec.shape) == 1:
            yield np.ones(spec.shape, dtype=np.float32)
            continue
        array = random.standard_normal(spec.shape, dtype=np.float32)
        if spec.name == "lm_head.weight":
            array *= _SHARPNESS / np.sqrt(spec.shape[1])
            array[silent_tokens(tokenizer.get_vocab())] = 0
        elif spec.name != "model.embed_tokens.weight":
            # Strong enough that the next token depends on more than the last one.
            array *= 2 / np.sqrt(spec.shape[1])
        yield array


def silent_tokens(vocabulary: dict[str, int]) -> list[int]:
    """Tokens that greedy output never contains."""
    return [
        index
        for token, index in vocabulary.items()
        if token in (*SPECIAL, THINK, THINK_END, *HARMONY) or not token.removeprefix("Ġ").isascii()
    ]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
