from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tokenizers import pre_tokenizers

from darkbloom_provider.engine.token_bytes import piece_bytes, token_data


@given(st.text(max_size=20))
def test_a_byte_level_vocabulary_is_read_to_the_byte(text: str) -> None:
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert b"".join(piece_bytes(piece, byte_level=True) for piece, _ in pieces) == text.encode()


def test_a_sentencepiece_vocabulary_has_bytes_and_spaces() -> None:
    assert piece_bytes("<0xF0>", byte_level=False) == b"\xf0"
    assert piece_bytes("\u2581the", byte_level=False) == b" the"
    assert piece_bytes("<0xF0>x", byte_level=False) == b"<0xF0>x"


def test_the_tokens_of_a_model_add_up_to_its_text(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    data = token_data(tokenizer)
    text = "naïve 🦊 said: the river"
    tokens = tokenizer.encode(text)
    assert b"".join(map(data, tokens)) == text.encode()
    assert any(not data(token).isascii() for token in tokens)
    assert data(tokenizer.eos_token_id) == b"<|im_end|>"
    assert data(10**6) == b""
