"""The benchmarks' model: a llama of random numbers with 27.8M parameters in fp32.

8 layers of 512 with 8 heads and 4 key-value heads, 8,192 tokens: large enough that arithmetic
dominates, small enough for two cores. Its text is nonsense of two- and three-letter tokens. Greedy
output never ends by itself, and every token of it is text at once: no half characters.
"""

from __future__ import annotations

import itertools
import json
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from darkbloom_provider.models import safetensors_file
from darkbloom_provider.models.safetensors_file import TensorSpec

MODEL_ID = "bench-27m"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = 2
CONTEXT = 4_096
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_SILENT = [
    *range(len(SPECIAL)),
    *(n for n, c in enumerate(_ALPHABET, len(SPECIAL)) if c not in string.ascii_lowercase + "Ġ"),
]
"""Tokens that greedy output never holds: their rows are zero, and some other row is above zero."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama."""

    hidden: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    inner: int = 1_536
    vocabulary: int = 8_192


FULL = Shape()
TINY = Shape(hidden=64, layers=2, heads=4, kv_heads=2, inner=128, vocabulary=512)


def build(folder: Path, shape: Shape = FULL) -> Path:
    """Write the model, unless it is there, and return its folder."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(shape.vocabulary).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[EOS],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    specs = _specs(shape)
    arrays = _arrays(specs)
    safetensors_file.write(folder / "model.safetensors", specs, arrays, metadata={"format": "mlx"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": CONTEXT,
        "vocab_size": shape.vocabulary,
        "eos_token_id": EOS,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def prompt(tokens: int, seed: int) -> str:
    """A text of exactly so many tokens. Those of different seeds begin differently.

    Texts of an even number of tokens may be joined with a space, which is one token more.
    """
    chance = random.Random(seed)
    # Every pair that begins with one of these letters is one token, and so is a space before it.
    words = [
        chance.choice("abcdefghi") + chance.choice(string.ascii_lowercase)
        for _ in range((tokens + 1) // 2)
    ]
    return " ".join(words) + ("" if tokens % 2 else ".")


class Prompts:
    """An endless line of prompts of which no two begin alike, the same line every time."""

    def __init__(self) -> None:
        self._seeds = itertools.count(1)

    def take(self, tokens: int) -> str:
        """One of exactly so many tokens."""
        return prompt(tokens, next(self._seeds))

    def some(self, count: int, tokens: int) -> list[str]:
        """Several of them."""
        return [self.take(tokens) for _ in range(count)]


def _tokenizer(size: int) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *_ALPHABET])}
    merges: list[tuple[str, str]] = []
    letters = string.ascii_lowercase
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b, c in itertools.product(letters, repeat=3)]
    for left, right in [*pairs, *triples]:
        if len(vocabulary) == size:
            break
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def _arrays(specs: list[TensorSpec]) -> Iterator[npt.NDArray[np.float32]]:
    numbers = np.random.default_rng(7)
    for spec in specs:
        if len(spec.shape) == 1:
            yield np.ones(spec.shape, np.float32)
            continue
        array = numbers.standard_normal(spec.shape, np.float32) * spec.shape[-1] ** -0.5
        if spec.name == "model.embed_tokens.weight":
            array[_SILENT] = 0
        yield array


def _specs(shape: Shape) -> list[TensorSpec]:
    head = shape.hidden // shape.heads
    shapes = {"model.embed_tokens": (shape.vocabulary, shape.hidden), "model.norm": (shape.hidden,)}
    for layer in range(shape.layers):
        shapes |= {
            f"model.layers.{layer}.{name}": size
            for name, size in {
                "input_layernorm": (shape.hidden,),
                "post_attention_layernorm": (shape.hidden,),
                "self_attn.q_proj": (shape.heads * head, shape.hidden),
                "self_attn.k_proj": (shape.kv_heads * head, shape.hidden),
                "self_attn.v_proj": (shape.kv_heads * head, shape.hidden),
                "self_attn.o_proj": (shape.hidden, shape.heads * head),
                "mlp.gate_proj": (shape.inner, shape.hidden),
                "mlp.up_proj": (shape.inner, shape.hidden),
                "mlp.down_proj": (shape.hidden, shape.inner),
            }.items()
        }
    return [TensorSpec(f"{name}.weight", "F32", size) for name, size in shapes.items()]
