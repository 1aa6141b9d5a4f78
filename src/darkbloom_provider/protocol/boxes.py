"""Sealed boxes: NaCl `crypto_box` (X25519, XSalsa20-Poly1305) through PyNaCl.

Wire form of a box: base64 (standard alphabet, padded) of nonce (24) ‖ tag (16) ‖ ciphertext.
Nonces are fresh and random for every box, because both directions of a session share one key.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

import nacl.exceptions
import nacl.public
import nacl.utils

from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol.messages import EncryptedPayload

KEY_BYTES = 32
NONCE_BYTES = 24
MINIMUM_BOX_BYTES = NONCE_BYTES + 16


class BoxError(DarkbloomError):
    """A key or a box is malformed, truncated, altered, or sealed for somebody else."""

    def __init__(self, why: str) -> None:
        super().__init__("A sealed box could not be opened", why=why)


def decode_base64(text: str) -> bytes:
    """Standard padded base64 as Go reads it: CR and LF are skipped, anything else is an error.

    Raises:
        BoxError: The text is not that.
    """
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except (binascii.Error, ValueError):
        raise BoxError("not standard base64") from None


def encode_base64(data: bytes) -> str:
    """Standard padded base64."""
    return base64.b64encode(data).decode()


def nonce_of(ciphertext: str) -> bytes:
    """The nonce of a box, which no other box of the same keys has: what tells a replayed one.

    Raises:
        BoxError: The box is truncated or not base64.
    """
    text = ciphertext.replace("\r", "").replace("\n", "")
    nonce = decode_base64(text[: NONCE_BYTES * 4 // 3])
    if len(nonce) != NONCE_BYTES:
        raise BoxError("truncated")
    return nonce


@dataclass(frozen=True)
class KeyPair:
    """An X25519 key pair. The secret half never shows in a representation."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise BoxError("a secret key has 32 bytes")
        public = bytes(nacl.public.PrivateKey(self.secret).public_key)
        object.__setattr__(self, "public_text", encode_base64(public))

    public_text: str = field(init=False)
    """The public half as it travels: base64, 44 characters, compared as text."""

    @classmethod
    def generate(cls) -> KeyPair:
        """A fresh pair from the system's randomness."""
        return cls(nacl.utils.random(KEY_BYTES))


class Channel:
    """What two key pairs share: seals for, and opens from, the one other side."""

    def __init__(self, mine: KeyPair, their_public_text: str) -> None:
        """Agree on the shared key.

        Raises:
            BoxError: `their_public_text` is not base64 of 32 bytes, or a key of low order.
        """
        theirs = decode_base64(their_public_text)
        if len(theirs) != KEY_BYTES:
            raise BoxError("a public key has 32 bytes")
        self._my_public_text = mine.public_text
        try:
            self._box = nacl.public.Box(
                nacl.public.PrivateKey(mine.secret), nacl.public.PublicKey(theirs)
            )
        except nacl.exceptions.CryptoError:
            raise BoxError("the public key is not usable") from None

    def seal(self, plaintext: bytes, nonce: bytes | None = None) -> str:
        """A box around `plaintext`, base64. `nonce` is for test vectors only."""
        return encode_base64(self._box.encrypt(plaintext, nonce))

    def open(self, ciphertext: str) -> bytes:
        """What is in the box.

        Raises:
            BoxError: Not base64, truncated, altered, or not for this channel.
        """
        blob = decode_base64(ciphertext)
        if len(blob) < MINIMUM_BOX_BYTES:
            raise BoxError("truncated")
        try:
            return self._box.decrypt(blob)
        except nacl.exceptions.CryptoError:
            raise BoxError("altered, or sealed for another key") from None

    def payload(self, plaintext: bytes) -> EncryptedPayload:
        """A box with this side's public key beside it, as both directions send it."""
        return EncryptedPayload(
            ephemeral_public_key=self._my_public_text, ciphertext=self.seal(plaintext)
        )
