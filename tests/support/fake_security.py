"""Apple's Security framework as pyobjc hands it out, over a key in software.

Names and shapes of the calls are those of pyobjc-framework-Security 12.2 (`_metadata.py`): a call
with an error argument takes None there and returns a pair. What macOS answers is not recorded from
a Mac; the refusals are those published with the sources named in the tests.
"""

from __future__ import annotations

import contextlib
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class SystemRefusal:
    """An NSError."""

    def __init__(self, code: int, text: str) -> None:
        self._code, self._text = code, text

    def code(self) -> int:
        return self._code

    def localizedDescription(self) -> str:  # noqa: N802 - Apple's name
        return self._text


class FakeSecurity:
    """The calls that a key in the enclave needs. `refuse` answers one of them with an error."""

    kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly = "cku"  # noqa: N815 - Apple's names
    kSecAccessControlPrivateKeyUsage = 1 << 30  # noqa: N815
    kSecAttrKeyType = "type"  # noqa: N815
    kSecAttrKeyTypeECSECPrimeRandom = "73"  # noqa: N815
    kSecAttrKeySizeInBits = "bsiz"  # noqa: N815
    kSecAttrTokenID = "tkid"  # noqa: N815
    kSecAttrTokenIDSecureEnclave = "com.apple.setoken"  # noqa: N815
    kSecPrivateKeyAttrs = "private"  # noqa: N815
    kSecAttrIsPermanent = "perm"  # noqa: N815
    kSecAttrAccessControl = "accc"  # noqa: N815
    kSecKeyAlgorithmECDSASignatureMessageX962SHA256 = "algid:sign:ECDSA:message-X962:SHA256"  # noqa: N815

    def __init__(self, **refuse: SystemRefusal | None) -> None:
        self.refuse = refuse
        self.asked: dict[str, Any] = {}
        self.curve: ec.EllipticCurve = ec.SECP256R1()
        self.other_key_signs = False
        self.hang: str | None = None
        self.let_go = threading.Event()

    def SecAccessControlCreateWithFlags(  # noqa: N802
        self, allocator: object, protection: str, flags: int, error: object
    ) -> tuple[Any, Any]:
        return self._answer("access", "access control", protection, flags)

    def SecKeyCreateRandomKey(self, parameters: dict[str, Any], error: object) -> tuple[Any, Any]:  # noqa: N802
        return self._answer("create", ec.generate_private_key(self.curve), parameters)

    def SecKeyCopyPublicKey(self, key: ec.EllipticCurvePrivateKey) -> ec.EllipticCurvePublicKey:  # noqa: N802
        return key.public_key()

    def SecKeyCopyExternalRepresentation(  # noqa: N802
        self, key: ec.EllipticCurvePublicKey, error: object
    ) -> tuple[Any, Any]:
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return self._answer("public", point)

    def SecKeyCreateSignature(  # noqa: N802
        self, key: ec.EllipticCurvePrivateKey, algorithm: str, message: bytes, error: object
    ) -> tuple[Any, Any]:
        if self.other_key_signs:
            key = ec.generate_private_key(self.curve)
        return self._answer("sign", key.sign(message, ec.ECDSA(hashes.SHA256())), algorithm)

    def _answer(self, call: str, value: object, *asked: object) -> tuple[Any, Any]:
        self.asked[call] = asked
        if call == self.hang:
            self.let_go.wait()
        if call in self.refuse:
            return None, self.refuse[call]
        return value, None

    def load(self, name: str) -> ModuleType:
        """In the place of `importlib.import_module`."""
        modules: dict[str, Any] = {
            "Security": self,
            "objc": SimpleNamespace(autorelease_pool=contextlib.nullcontext),
        }
        module: ModuleType = modules[name]
        return module
