"""What single tokens write, to the byte. Pure but for the tokenizer it asks."""

from __future__ import annotations

import re
from collections.abc import Callable

from darkbloom_provider.engine.prompt import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
"""How vocabularies with byte fallback write a token of one byte."""
_SPACE = "\u2581"
"""How SentencePiece vocabularies write a space."""


def token_data(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """A function that gives the bytes of a token.

    A byte of a token may be a part of a character. Tokens the vocabulary does not have are empty.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda token: tokenizer.decode(
            [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
        ).encode()
    byte_level = "ByteLevel" in str(backend.decoder)
    added = {id_: str(token.content) for id_, token in backend.get_added_tokens_decoder().items()}

    def data(token: int) -> bytes:
        if token in added:
            return added[token].encode()
        piece = backend.id_to_token(token)
        return b"" if piece is None else piece_bytes(piece, byte_level=byte_level)

    return data


def piece_bytes(piece: str, *, byte_level: bool) -> bytes:
    """The bytes of a vocabulary's entry, in the notation of GPT-2 or of SentencePiece."""
    if byte_level:
        return b"".join(
            bytes([_BYTES[sign]]) if sign in _BYTES else sign.encode() for sign in piece
        )
    match = _BYTE.match(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace(_SPACE, " ").encode()


def _byte_signs() -> dict[str, int]:
    """GPT-2's notation: printable bytes stand for themselves, the others for signs from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {chr(byte): byte for byte in printable}
    return signs | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_signs()
