"""From a GGUF file's vocabulary to `tokenizer.json` and `tokenizer_config.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from darkbloom_provider.models.gguf_file import GgufFile, unusable

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

# Token types of the GGUF specification.
_CONTROL, _USER_DEFINED = 3, 4


def check(file: GgufFile) -> None:
    """Refuse a vocabulary that cannot be rebuilt, before anything is written.

    Raises:
        ModelError: Another kind of tokenizer, or one split into words by rules not known here.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise unusable(
            file.path, f"its tokenizer is of the kind {kind}; only byte-level BPE is known"
        )
    rules = file.get("tokenizer.ggml.pre", str, "gpt-2")
    if rules not in _PRE_TOKENIZERS:
        raise unusable(
            file.path, f"its tokenizer splits words by the rules {rules}, not known here"
        )
    tokens = file.list_of("tokenizer.ggml.tokens", str)
    types = file.list_of("tokenizer.ggml.token_type", int)
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise unusable(file.path, "its vocabulary is inconsistent")
    for key in ("eos", "bos", "unknown", "padding"):
        if not -1 < (_id(file, key) or 0) < len(tokens):
            raise unusable(file.path, f"its {key} token is not in the vocabulary")


def eos_ids(file: GgufFile) -> list[int]:
    """Tokens that end a completion.

    Raises:
        ModelError: The file names none: no completion would ever end.
    """
    ids = [_id(file, "eos"), _id(file, "eot")]
    known = list(dict.fromkeys(token for token in ids if token is not None))
    if not known:
        raise unusable(file.path, "it names no token that ends a text")
    return known


def bos_id(file: GgufFile) -> int | None:
    """The token that begins a text, if there is one."""
    return _id(file, "bos")


def write(file: GgufFile, folder: Path) -> None:
    """Write both files.

    Raises:
        ModelError: The merges do not fit the vocabulary.
        OSError: The disk is full, or cannot be written.
    """
    text = build(file).to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.dumps(_config(file), ensure_ascii=False, indent=1)
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def build(file: GgufFile) -> Tokenizer:
    """The tokenizer.

    Raises:
        ModelError: As `check`, or the merges do not fit the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models  # noqa: PLC0415 - only imports need it

    check(file)
    tokens = file.list_of("tokenizer.ggml.tokens", str)
    merges = [_pair(file, merge) for merge in file.list_of("tokenizer.ggml.merges", str)]
    try:
        bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    except Exception as error:
        # The library raises bare exceptions.
        raise unusable(file.path, "its merges do not fit its vocabulary") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[file.get("tokenizer.ggml.pre", str, "gpt-2")]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(file, _CONTROL))
    tokenizer.add_tokens(_added(file, _USER_DEFINED))
    _begin_with_bos(file, tokenizer)
    return tokenizer


def _smollm() -> PreTokenizer:
    """Digits one by one, then GPT-2's words as bytes, without a space in front."""
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - only imports need it

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _gpt2() -> PreTokenizer:
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - only imports need it

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


_PRE_TOKENIZERS: Mapping[str, Callable[[], PreTokenizer]] = MappingProxyType(
    {"smollm": _smollm, "gpt-2": _gpt2}
)


def _pair(file: GgufFile, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise unusable(file.path, "its merges do not fit its vocabulary")
    return left, right


def _added(file: GgufFile, kind: int) -> list[AddedToken]:
    from tokenizers import AddedToken  # noqa: PLC0415 - only imports need it

    tokens = file.list_of("tokenizer.ggml.tokens", str)
    types = file.list_of("tokenizer.ggml.token_type", int)
    return [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, type_ in zip(tokens, types, strict=True)
        if type_ == kind
    ]


def _begin_with_bos(file: GgufFile, tokenizer: Tokenizer) -> None:
    from tokenizers import processors  # noqa: PLC0415 - only imports need it

    bos = bos_id(file)
    if bos is None or file.metadata.get("tokenizer.ggml.add_bos_token") is not True:
        return
    token = file.list_of("tokenizer.ggml.tokens", str)[bos]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], special_tokens=[(token, bos)]
    )


def _config(file: GgufFile) -> dict[str, Any]:
    tokens = file.list_of("tokenizer.ggml.tokens", str)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.get("llama.context_length", int),
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for name, key in {"eos": "eos", "bos": "bos", "unk": "unknown", "pad": "padding"}.items():
        token = _id(file, key)
        if token is not None:
            config[f"{name}_token"] = tokens[token]
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.get("tokenizer.chat_template", str)
    return config


def _id(file: GgufFile, name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    return file.get(key, int) if key in file.metadata else None
