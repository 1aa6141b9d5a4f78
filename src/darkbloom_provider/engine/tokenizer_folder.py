"""Reading a model folder's tokenizer without transformers, where that gives the same tokens.

transformers takes 20 MB of memory for good. It does not simply read `tokenizer.json`: for some
classes it builds the tokenizer anew, and tokens are added by several files. A folder is read here
if nothing of that can make a difference; of any other `read` knows nothing, and mlx-lm reads it.
Source of every condition: `AutoTokenizer.from_pretrained` and `TokenizersBackend` of 5.23.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from darkbloom_provider.engine.tokenizer_json import DEFAULT, ChatTemplates, JsonTokenizer

_NAMED: Final = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
_GENERIC: Final = frozenset({"PreTrainedTokenizer", "TokenizersBackend"})
"""Classes that take `tokenizer.json` as it is. Names are without the ending `Fast`."""
_BY_MODEL_TYPE: Final = {
    "qwen2": "Qwen2Tokenizer",
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
}
"""Models whose class is this one, whatever their folder says."""
_UNKNOWN_TYPES: Final = frozenset({"hyperclovax_vision_v2", "qwen4_exp", "siglip2"})
"""More of those, with classes that are not known here."""
_CHANGES_MORE: Final = (
    *("auto_map", "chat_template_type", "fast_tokenizer_files", "fix_mistral_regex"),
    *("model_specific_special_tokens", "split_special_tokens", "tokenizer_file"),
)
"""Settings that make another tokenizer of it."""
_LEGACY: Final = ("added_tokens.json", "special_tokens_map.json")
"""Files that add tokens unless `added_tokens_decoder` of the settings lists all of them."""


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """A class that builds its tokenizer anew, from the vocabulary and the added tokens alone."""

    pipeline: dict[str, Any]
    """What it makes around the vocabulary; see `_pipeline`."""
    named: Mapping[str, str]
    """Special tokens of folders that do not name them."""


class _NotHereError(Exception):
    """The folder is not one that can be read here."""


def read(folder: Path, eos_token_ids: int | Iterable[int] | None) -> JsonTokenizer | None:
    """The tokenizer of a model folder; None if it takes transformers to tell what it is.

    Args:
        folder: With `tokenizer.json` and `tokenizer_config.json`.
        eos_token_ids: Tokens that end a completion by the model's own settings; the tokenizer's
            are added.

    Raises:
        Exception: `tokenizer.json` is damaged.
    """
    try:
        settings = _json_object(folder / "tokenizer_config.json")
        model = _json_object(folder / "config.json")
        templates = _templates(folder, settings)
    except (OSError, ValueError):
        return None
    if not (folder / "tokenizer.json").is_file():
        return None
    try:
        name = _class(settings, model)
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        rebuilt = _rebuilt(name, backend)
        _check_added_tokens(folder, settings, backend, rebuilt)
        named = _named_tokens(settings, rebuilt)
        _check_known(backend, [*named.values(), *_extra_tokens(settings)])
    except _NotHereError:
        return None
    ends: set[Any] = {eos_token_ids} if isinstance(eos_token_ids, int) else set(eos_token_ids or ())
    if "eos_token" in named:
        ends.add(backend.token_to_id(named["eos_token"]))
    return JsonTokenizer(backend, special_tokens=named, templates=templates, eos_token_ids=ends)


def _json_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not an object")  # noqa: TRY004 - bad JSON, as the others
    return found


def _templates(folder: Path, settings: Mapping[str, Any]) -> ChatTemplates:
    """Files come before what the settings say."""
    files = {
        DEFAULT: folder / "chat_template.jinja",
        **{file.stem: file for file in (folder / "additional_chat_templates").glob("*.jinja")},
    }
    found = {
        name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()
    }
    if found:
        return found
    told = settings.get("chat_template")
    if isinstance(told, str):
        return {DEFAULT: told}
    if isinstance(told, list):
        try:
            return {str(entry["name"]): str(entry["template"]) for entry in told}
        except (KeyError, TypeError) as error:
            raise ValueError("chat_template is not a list of named templates") from error
    if told is not None:
        raise ValueError("chat_template is neither a template nor a list of them")
    return {}


def _class(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The class that transformers would take, without the ending `Fast`."""
    kind = model.get("model_type")
    changed = any(settings.get(setting) for setting in _CHANGES_MORE)
    if changed or kind in _UNKNOWN_TYPES or "model_name" in model:
        raise _NotHereError
    if kind in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[kind]
    return str(settings.get("tokenizer_class")).removesuffix("Fast")


def _rebuilt(name: str, backend: Tokenizer) -> _Rebuilt | None:
    """How a class builds its tokenizer; None if it takes it from the file."""
    if name in _GENERIC:
        return None
    pipeline = _pipeline(backend)
    if name == "LlamaTokenizer" and _is_byte_level(pipeline):
        return None
    make = _REBUILT.get(name)
    if make is None or (rebuilt := make()).pipeline != pipeline:
        raise _NotHereError
    return rebuilt


def _is_byte_level(pipeline: Mapping[str, Any]) -> bool:
    """As `TokenizersBackend` tells a tokenizer of Llama 3 from one of Llama 2."""
    before, after = pipeline["pre_tokenizer"] or {}, pipeline["decoder"] or {}
    parts = [before, *before.get("pretokenizers", ())], [after, *after.get("decoders", ())]
    return any(part.get("type") == "ByteLevel" for some in parts for part in some)


def _pipeline(backend: Tokenizer) -> dict[str, Any]:
    """Everything that decides on tokens but the vocabulary, the added ones and the last step.

    The last step is that of the file in every class.
    """
    model = backend.model
    return {
        "normalizer": _state(backend.normalizer),
        "pre_tokenizer": _state(backend.pre_tokenizer),
        "decoder": _state(backend.decoder),
        "model": type(model).__name__,
        **{
            flag: getattr(model, flag, None) or None
            for flag in (
                *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
                *("fuse_unk", "byte_fallback", "ignore_merges"),
            )
        },
    }


def _state(part: Any) -> dict[str, Any] | None:  # noqa: ANN401 - tokenizers has no types
    if part is None:
        return None
    return _telling(json.loads(part.__getstate__()), decodes=isinstance(part, decoders.Decoder))


def _telling(state: dict[str, Any], *, decodes: bool) -> dict[str, Any]:
    """A part's settings without those that change no token and no text."""
    if decodes and state["type"] == "ByteLevel":
        return {"type": "ByteLevel"}
    return {
        name: [_telling(part, decodes=decodes) for part in value]
        if name in {"normalizers", "pretokenizers", "decoders"}
        else value
        for name, value in state.items()
        if name != "trim_offsets"
    }


def _check_added_tokens(
    folder: Path, settings: Mapping[str, Any], backend: Tokenizer, rebuilt: _Rebuilt | None
) -> None:
    """Raise unless the file's added tokens are all that there will be, with the same ids."""
    in_file = {id_: _flags(token) for id_, token in backend.get_added_tokens_decoder().items()}
    listed = settings.get("added_tokens_decoder")
    if listed is None:
        if any((folder / name).exists() for name in _LEGACY):
            raise _NotHereError
    else:
        try:
            told = {int(id_): _flags(AddedToken(**token)) for id_, token in listed.items()}
        except (AttributeError, TypeError, ValueError):
            raise _NotHereError from None
        if not told.items() <= in_file.items() or (rebuilt and told != in_file):
            raise _NotHereError
    if rebuilt:
        # They get the ids after the vocabulary's, in order.
        size = backend.get_vocab_size(with_added_tokens=False)
        behind = sorted(id_ for id_ in in_file if id_ >= size)
        if behind != list(range(size, size + len(behind))):
            raise _NotHereError


def _flags(token: AddedToken) -> tuple[object, ...]:
    return (
        *(token.content, token.special, token.normalized),
        *(token.lstrip, token.rstrip, token.single_word),
    )


def _named_tokens(settings: Mapping[str, Any], rebuilt: _Rebuilt | None) -> dict[str, str]:
    """The special tokens that templates know by a name."""
    named: dict[str, Any] = {} if rebuilt is None else dict(rebuilt.named)
    named |= {
        name: value
        for name, value in settings.items()
        if name in _NAMED or (name.endswith("_token") and isinstance(value, str))
    }
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    return {name: _text(value) for name, value in named.items() if value is not None}


def _text(token: object) -> str:
    if isinstance(token, dict) and token.get("__type") == "AddedToken":
        token = token.get("content")
    if not isinstance(token, str):
        raise _NotHereError
    return token


def _extra_tokens(settings: Mapping[str, Any]) -> list[str]:
    extra = [
        *(settings.get("additional_special_tokens") or ()),
        *(settings.get("extra_special_tokens") or ()),
    ]
    if isinstance(settings.get("extra_special_tokens"), dict):
        extra = list(settings.get("additional_special_tokens") or ())
    return [_text(token) for token in extra]


def _check_known(backend: Tokenizer, tokens: Iterable[str]) -> None:
    """Raise unless all are added tokens already: transformers would add those that are not."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    if not known.issuperset(tokens):
        raise _NotHereError


def _byte_level(words: str) -> dict[str, Any]:
    return {
        "normalizer": _state(normalizers.NFC()),
        "pre_tokenizer": _state(
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        ),
        "decoder": _state(decoders.ByteLevel()),
        **_BPE,
    }


_BPE: Final = {
    "model": "BPE",
    **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
    **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges")),
}


def _qwen2() -> _Rebuilt:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _Rebuilt(_byte_level(words), _QWEN_NAMES)


def _qwen3_5() -> _Rebuilt:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _Rebuilt(_byte_level(words), _QWEN_NAMES)


def _gemma() -> _Rebuilt:
    pipeline = {
        "normalizer": _state(normalizers.Replace(" ", "\u2581")),
        "pre_tokenizer": _state(
            pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
        ),
        "decoder": _state(
            decoders.Sequence(
                [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
            )
        ),
        **_BPE,
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
    }
    names = ("unk", "bos", "eos", "pad", "mask")
    return _Rebuilt(pipeline, {f"{name}_token": f"<{name}>" for name in names})


_QWEN_NAMES: Final = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
_REBUILT: Final[Mapping[str, Callable[[], _Rebuilt]]] = {
    "Qwen2Tokenizer": _qwen2,
    "Qwen3_5Tokenizer": _qwen3_5,
    "GemmaTokenizer": _gemma,
}
