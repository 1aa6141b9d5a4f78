from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol.boxes import BoxError, Channel, KeyPair, decode_base64, nonce_of
from darkbloom_provider.protocol.messages import EncryptedPayload
from support.recordings import SESSIONS, recording, vectors

VECTORS = vectors()
PROVIDER = KeyPair(base64.b64decode(VECTORS["provider_key"]["provider_private_b64"]))


@pytest.mark.parametrize("vector", VECTORS["boxes"], ids=lambda v: v["name"][:2])
def test_boxes_match_the_vectors_byte_for_byte(vector: dict[str, Any]) -> None:
    session = KeyPair(base64.b64decode(vector["session_private_b64"]))
    assert session.public_text == vector["session_public_b64"]
    assert PROVIDER.public_text == VECTORS["provider_key"]["provider_public_b64"]
    sender, receiver = (
        (session, PROVIDER) if vector["direction"] == "request" else (PROVIDER, session)
    )
    plaintext = base64.b64decode(vector["plaintext_b64"])
    nonce = base64.b64decode(vector["nonce_b64"])
    sealed = Channel(sender, receiver.public_text).seal(plaintext, nonce)
    assert sealed == vector["payload"]["ciphertext"]
    assert vector["payload"]["ephemeral_public_key"] == sender.public_text
    assert Channel(receiver, sender.public_text).open(sealed) == plaintext


@pytest.mark.parametrize("name", SESSIONS)
def test_boxes_of_recorded_sessions_open(name: str) -> None:
    lines = recording(name)
    provider = KeyPair(base64.b64decode(lines[0]["throwaway_provider_x25519_secret_b64"]))
    opened = 0
    for line in lines:
        if "plaintext" not in line or "encrypted_body" not in line["frame"]:
            continue
        payload = EncryptedPayload.model_validate(line["frame"]["encrypted_body"])
        channel = Channel(provider, payload.ephemeral_public_key)
        assert channel.open(payload.ciphertext).decode() == line["plaintext"]
        opened += 1
    assert opened or name == "ws-periodic-challenge"


@given(st.binary(max_size=300))
def test_what_is_sealed_opens_at_the_other_side_only(plaintext: bytes) -> None:
    session, stranger = KeyPair.generate(), KeyPair.generate()
    payload = Channel(session, PROVIDER.public_text).payload(plaintext)
    assert payload.ephemeral_public_key == session.public_text
    assert Channel(PROVIDER, session.public_text).open(payload.ciphertext) == plaintext
    with pytest.raises(BoxError):
        Channel(stranger, session.public_text).open(payload.ciphertext)


@given(st.integers(min_value=0, max_value=60), st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_or_a_cut_is_refused(position: int, bit: int) -> None:
    session = KeyPair.generate()
    channel = Channel(session, PROVIDER.public_text)
    blob = bytearray(base64.b64decode(channel.seal(b"twenty-one bytes here")))
    cut = bytes(blob[:position])
    blob[position] ^= 1 << bit
    for altered in (bytes(blob), cut):
        with pytest.raises(BoxError):
            channel.open(base64.b64encode(altered).decode())


def test_every_flipped_bit_of_a_box_is_noticed() -> None:
    session = KeyPair.generate()
    channel = Channel(session, PROVIDER.public_text)
    blob = base64.b64decode(channel.seal(b"twelve bytes"))
    for place in range(len(blob)):
        for bit in range(8):
            flipped = bytearray(blob)
            flipped[place] ^= 1 << bit
            with pytest.raises(BoxError, match="altered, or sealed for another key"):
                channel.open(base64.b64encode(flipped).decode())


def test_the_nonce_of_a_box_is_read_however_its_text_is_broken_into_lines() -> None:
    nonce = bytes(range(24))
    sealed = Channel(KeyPair.generate(), PROVIDER.public_text).seal(b"", nonce)
    for text in (sealed, "\r\n".join(sealed)):
        assert nonce_of(text) == nonce
    for text in ("", sealed[:28], "{}", sealed[:31] + "-"):
        with pytest.raises(BoxError):
            nonce_of(text)


@pytest.mark.parametrize("text", ["", "====", "a-_b", "AAAA", "A" * 45, "é", "AAA"])
def test_a_malformed_key_is_a_box_error(text: str) -> None:
    with pytest.raises(BoxError):
        Channel(PROVIDER, text)


def test_a_key_of_low_order_is_a_box_error() -> None:
    with pytest.raises(BoxError):
        Channel(PROVIDER, base64.b64encode(bytes(32)).decode())


def test_line_breaks_in_base64_are_skipped_as_go_does() -> None:
    assert decode_base64("aGVs\r\nbG8=") == b"hello"


def test_a_secret_key_never_shows() -> None:
    assert base64.b64encode(PROVIDER.secret).decode() not in repr(PROVIDER)
    assert repr(PROVIDER.secret) not in repr(PROVIDER)
