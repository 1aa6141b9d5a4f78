"""The benchmarks' model: a llama of random numbers with 27.8M parameters in fp32.

8 layers of 512 with 8 heads and 4 key-value heads, 8,192 tokens: large enough that arithmetic
dominates, small enough for two cores. Its text is nonsense of two- and three-letter tokens.
"""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from darkbloom_provider.models import safetensors_file
from darkbloom_provider.models.safetensors_file import TensorSpec

MODEL_ID = "bench-27m"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EOS = 2
VOCABULARY = 8_192
CONTEXT = 4_096
HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 512, 8, 8, 4, 1_536
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build(folder: Path) -> Path:
    """Write the model, unless it is there, and return its folder."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[EOS],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    random = np.random.default_rng(7)
    specs = list(_specs())
    arrays = (
        np.ones(spec.shape, np.float32)
        if len(spec.shape) == 1
        else (random.standard_normal(spec.shape, np.float32) * spec.shape[-1] ** -0.5)
        for spec in specs
    )
    safetensors_file.write(folder / "model.safetensors", specs, arrays, metadata={"format": "mlx"})
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCABULARY,
        "eos_token_id": EOS,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def prompt(tokenizer: Tokenizer, tokens: int, *, variant: int = 0) -> str:
    """A text of exactly so many tokens; different variants share no prefix."""
    words = [f"{chr(97 + (variant + n) % 26)}{chr(97 + n % 26)}" for n in range(tokens * 2)]
    for length in range(1, len(words)):
        text = " ".join(words[:length])
        if len(tokenizer.encode(text).ids) >= tokens:
            break
    while len(tokenizer.encode(text).ids) > tokens:
        text = text[:-1]
    return text


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    merges: list[tuple[str, str]] = []
    letters = string.ascii_lowercase
    pairs = [(a, b) for a in letters for b in letters]
    triples = [(a + b, c) for a, b, c in itertools.product(letters, repeat=3)]
    for left, right in [*pairs, *triples]:
        if len(vocabulary) == VOCABULARY:
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


def _specs() -> list[TensorSpec]:
    head = HIDDEN // HEADS
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}": shape
            for name, shape in {
                "input_layernorm": (HIDDEN,),
                "post_attention_layernorm": (HIDDEN,),
                "self_attn.q_proj": (HEADS * head, HIDDEN),
                "self_attn.k_proj": (KV_HEADS * head, HIDDEN),
                "self_attn.v_proj": (KV_HEADS * head, HIDDEN),
                "self_attn.o_proj": (HIDDEN, HEADS * head),
                "mlp.gate_proj": (INNER, HIDDEN),
                "mlp.up_proj": (INNER, HIDDEN),
                "mlp.down_proj": (HIDDEN, INNER),
            }.items()
        }
    return [TensorSpec(f"{name}.weight", "F32", shape) for name, shape in shapes.items()]
