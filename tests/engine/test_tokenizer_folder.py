"""A folder that is read here gives the tokens that transformers gives; any other is left to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers.models.auto import tokenization_auto

from darkbloom_provider.engine import tokenizer_folder
from darkbloom_provider.engine.tokenizer_json import JsonTokenizer

TEXT = """The river runs to the sea; it's 12 345 miles, isn't it? naïve café Größe 東京 हिन्दी 👩‍🚀
def main():\n    return {'a': [1, 2.5e3]}\r\n\r\n\tTabs,   spaces    and <b>marks</b>.
I'll we've they're 'S"""
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if enable_thinking %}<think>{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(words: str, special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """As the files of Qwen and Llama 3 are, down to settings that change nothing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), "</think>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def gemma() -> Tokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    named = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *SPECIAL]
    letters = sorted({*TEXT.replace(" ", "\u2581"), "\u2581"})
    vocabulary = {token: id_ for id_, token in enumerate([*named, *bytes_, *letters])}
    merges = []
    for left, right in [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "n"), ("e", "r")]:
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in named])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return tokenizer


def written(folder: Path, tokenizer: Tokenizer, *, model_type: str = "llama", **told: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads(tokenizer.to_str())
    if document["decoder"]["type"] == "ByteLevel":
        # As the files have them. They change nothing of what is decoded.
        document["decoder"] |= dict.fromkeys(
            ("add_prefix_space", "trim_offsets", "use_regex"), False
        )
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>", **told})
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type, "eos_token_id": 3, "architectures": ["X"]})
    )
    return folder


def listed(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """`added_tokens_decoder`, as folders from before transformers 5 have it."""
    return {
        str(id_): {
            name: getattr(token, name)
            for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        }
        for id_, token in tokenizer.get_added_tokens_decoder().items()
    }


def generic(folder: Path) -> Path:
    return written(folder, byte_level(QWEN2), tokenizer_class="PreTrainedTokenizerFast")


def generic_of_today(folder: Path) -> Path:
    return written(
        folder,
        byte_level(LLAMA3),
        tokenizer_class="TokenizersBackend",
        bos_token="<|im_start|>",
        extra_special_tokens=["<|endoftext|>"],
        image_token="<|endoftext|>",
    )


def qwen3(folder: Path) -> Path:
    tokenizer = byte_level(QWEN2)
    return written(
        folder,
        tokenizer,
        model_type="qwen3",
        tokenizer_class="Qwen2Tokenizer",
        added_tokens_decoder=listed(tokenizer),
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        add_bos_token=False,
        bos_token=None,
        unk_token=None,
        pad_token="<|endoftext|>",
    )


def qwen3_5(folder: Path) -> Path:
    tokenizer = byte_level(QWEN3_5)
    return written(folder, tokenizer, model_type="qwen3_5", tokenizer_class="Qwen2TokenizerFast")


def llama3(folder: Path) -> Path:
    tokenizer = byte_level(LLAMA3)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|im_start|> $A",
                special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))],
            ),
        ]
    )
    return written(
        folder,
        tokenizer,
        tokenizer_class="LlamaTokenizerFast",
        bos_token="<|im_start|>",
        added_tokens_decoder=listed(tokenizer),
    )


def minimax(folder: Path) -> Path:
    return written(
        folder,
        byte_level(LLAMA3),
        model_type="minimax_m2",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|im_start|>",
    )


def gemma3(folder: Path) -> Path:
    tokenizer = gemma()
    return written(
        folder,
        tokenizer,
        model_type="gemma3_text",
        tokenizer_class="GemmaTokenizer",
        added_tokens_decoder=listed(tokenizer),
        add_bos_token=True,
        bos_token="<bos>",
        eos_token={"__type": "AddedToken", "content": "<eos>", "normalized": False},
        boi_token="<|im_start|>",
        spaces_between_special_tokens=False,
    )


FAMILIES = [generic, generic_of_today, qwen3, qwen3_5, llama3, minimax, gemma3]
TALKS = [
    [{"role": "user", "content": "It's <think> 12345 naïve \u0301e?"}],
    [
        {"role": "system", "content": "Sei kurz."},
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": "<|im_end|> ok", "reasoning_content": "hm"},
        {"role": "user", "content": "  \n\n東京 👩‍🚀"},
    ],
]


def both(folder: Path) -> tuple[JsonTokenizer, Any]:
    ours = tokenizer_folder.read(folder, 3)
    assert ours is not None
    return ours, load_tokenizer(folder, {"local_files_only": True}, eos_token_ids=3)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[JsonTokenizer, Any]:
    family: Callable[[Path], Path] = request.param
    return both(family(tmp_path_factory.mktemp(family.__name__)))


def test_what_a_tokenizer_is_made_of_is_what_transformers_makes(
    pair: tuple[JsonTokenizer, Any],
) -> None:
    ours, theirs = pair
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert ours.eos_token_ids == theirs.eos_token_ids
    assert ours.has_chat_template == theirs.has_chat_template is True
    assert ours.backend_tokenizer.get_vocab() == theirs.get_vocab()
    assert ours._special_tokens == theirs.special_tokens_map


@given(text=st.text(max_size=60) | st.text(alphabet=TEXT + "".join(SPECIAL), max_size=60))
@settings(max_examples=40, deadline=None)
def test_texts_have_the_tokens_that_transformers_gives_them(
    pair: tuple[JsonTokenizer, Any], text: str
) -> None:
    ours, theirs = pair
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text)
    for skip in (False, True):
        plain = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
        assert ours.decode(tokens, **plain) == theirs.decode(tokens, **plain)


@pytest.mark.parametrize("text", [TEXT, "<|im_start|> x<|endoftext|>", " <think> </think>", ""])
def test_chosen_texts_have_the_tokens_that_transformers_gives_them(
    pair: tuple[JsonTokenizer, Any], text: str
) -> None:
    ours, theirs = pair
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"bos_token": "!"}])
@pytest.mark.parametrize("add", [True, False])
def test_conversations_have_the_tokens_that_transformers_gives_them(
    pair: tuple[JsonTokenizer, Any], talk: Any, variables: dict[str, Any], add: bool
) -> None:
    ours, theirs = pair
    tokens = ours.apply_chat_template(talk, tools=None, add_generation_prompt=add, **variables)
    assert tokens == theirs.apply_chat_template(
        talk, tools=None, add_generation_prompt=add, **variables
    )


def test_of_several_templates_the_one_for_tools_is_taken_for_tools(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain {{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools {{ tools | tojson }}"},
    ]
    folder = written(
        tmp_path, byte_level(QWEN2), tokenizer_class="TokenizersBackend", chat_template=named
    )
    ours, theirs = both(folder)
    for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
        asked: dict[str, Any] = {"tools": tools, "add_generation_prompt": True}
        assert ours.apply_chat_template(TALKS[0], **asked) == theirs.apply_chat_template(
            TALKS[0], **asked
        )
    assert ours.chat_template == theirs.chat_template


def test_templates_in_files_come_before_those_in_the_settings(tmp_path: Path) -> None:
    folder = generic(tmp_path)
    (folder / "chat_template.jinja").write_text("file {{ messages[0].role }}")
    ours, theirs = both(folder)
    assert ours.apply_chat_template(TALKS[0]) == theirs.apply_chat_template(TALKS[0])
    assert ours.chat_template == {"default": theirs.chat_template}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    ours, theirs = both(folder)
    assert ours.chat_template == theirs.chat_template


def test_without_a_template_there_is_none(tmp_path: Path) -> None:
    folder = written(
        tmp_path, byte_level(QWEN2), tokenizer_class="TokenizersBackend", chat_template=None
    )
    ours, theirs = both(folder)
    assert ours.has_chat_template == theirs.has_chat_template is False
    with pytest.raises(ValueError, match="default"):
        ours.apply_chat_template(TALKS[0])
    with pytest.raises(ValueError, match="at least one"):
        ours.apply_chat_template([])


def test_what_a_file_would_cut_or_pad_is_neither_cut_nor_padded(tmp_path: Path) -> None:
    tokenizer = byte_level(QWEN2)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=99)
    ours, theirs = both(written(tmp_path, tokenizer, tokenizer_class="PreTrainedTokenizerFast"))
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert len(ours.encode(TEXT)) > 3


# ---------------------------------------------------------------- left to transformers


def told(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))

    return change


def model_is(**changed: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(changed))


def has(name: str, text: str = "{}") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "change",
    [
        without("tokenizer.json"),
        without("tokenizer_config.json"),
        has("tokenizer_config.json", "[]"),
        has("special_tokens_map.json"),
        has("added_tokens.json"),
        told(tokenizer_class="GPT2Tokenizer"),
        told(tokenizer_class="Qwen3_5Tokenizer"),
        told(tokenizer_class="GemmaTokenizer"),
        told(tokenizer_class=None),
        told(auto_map={"AutoTokenizer": ["x.Y", None]}),
        told(chat_template_type="deepseek_v32"),
        told(split_special_tokens=True),
        told(fix_mistral_regex=True),
        told(bos_token="<new>"),
        told(bos_token={"content": "<|im_start|>"}),
        told(additional_special_tokens=["the"]),
        told(extra_special_tokens={"boi_token": "<new>"}),
        told(chat_template=3),
        told(chat_template=[{"name": "default"}]),
        told(added_tokens_decoder={"5": {"content": "<|im_start|>", "special": True}}),
        told(added_tokens_decoder={"x": {"content": "<|im_start|>"}}),
        told(added_tokens_decoder=[]),
        model_is(model_type="qwen3_5"),
        model_is(model_type="siglip2"),
        model_is(model_type="llama", model_name="fuyu"),
    ],
)
def test_where_another_file_or_setting_may_decide_it_is_left_to_transformers(
    change: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = generic(tmp_path)
    assert tokenizer_folder.read(folder, None) is not None
    change(folder)
    assert tokenizer_folder.read(folder, None) is None


def test_a_class_that_builds_anew_is_left_to_transformers_unless_it_builds_the_same(
    tmp_path: Path,
) -> None:
    tokenizer = byte_level(QWEN2)
    folder = qwen3(tmp_path)
    assert tokenizer_folder.read(folder, None) is not None
    one_less = dict(list(listed(tokenizer).items())[1:])
    told(added_tokens_decoder=one_less)(folder)
    assert tokenizer_folder.read(folder, None) is None, "a token of the file that nobody adds"
    qwen3(tmp_path)
    byte_level(LLAMA3).save(str(folder / "tokenizer.json"))
    assert tokenizer_folder.read(folder, None) is None, "other words"
    for flag in ("ignore_merges", "byte_fallback"):
        document = json.loads(byte_level(QWEN2).to_str())
        document["model"][flag] = True
        (folder / "tokenizer.json").write_text(json.dumps(document))
        assert tokenizer_folder.read(folder, None) is None, flag
    document = json.loads(byte_level(QWEN2).to_str())
    document["added_tokens"][-1]["id"] += 7
    document["added_tokens"].pop(0)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    told(added_tokens_decoder=None)(folder)
    assert tokenizer_folder.read(folder, None) is None, "ids with gaps"


def test_the_classes_of_models_are_those_that_transformers_takes() -> None:
    plain = {"TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast", None}
    names = tokenization_auto.TOKENIZER_MAPPING_NAMES
    overruling = {
        model: names.get(model)
        for model in tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        if names.get(model) not in plain
    }
    known = set(tokenizer_folder._BY_MODEL_TYPE) | tokenizer_folder._UNKNOWN_TYPES
    assert set(overruling) == known
    assert {
        model: overruling[model] for model in tokenizer_folder._BY_MODEL_TYPE
    } == tokenizer_folder._BY_MODEL_TYPE
