"""The Secure Enclave: a P-256 key that this process can use and nobody can copy.

Made anew at every start and kept nowhere, through Apple's Security framework, as in "Protecting
keys with the Secure Enclave" of Apple's documentation:
https://developer.apple.com/documentation/security/protecting-keys-with-the-secure-enclave.
A machine without an enclave, or whose system refuses the key, has none; nothing stands in for it.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any, Final, TypeVar, cast

from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.protocol import signed
from darkbloom_provider.protocol.boxes import encode_base64

_POINT_BYTES: Final = 65
_UNCOMPRESSED: Final = 4
_KEY_BITS: Final = 256
_MISSING_ENTITLEMENT: Final = -34018
CREATION_S: Final = 10.0
SIGNING_S: Final = 0.4
"""Seconds; two signatures answer a challenge, which should take no more than one."""
_PROBE: Final = b"darkbloom: is this key what it says?"

_T = TypeVar("_T")

Load = Callable[[str], ModuleType]
"""Imports a module by its name."""


class EnclaveError(DarkbloomError):
    """There is no key in a Secure Enclave, or it does not sign. Carries what the system said."""


class EnclaveKey:
    """A `protocol.signed.SigningKey` whose private half is in the Secure Enclave.

    Args:
        security: pyobjc's `Security` module.
        private: The key's reference (`SecKeyRef`).
        pool: Makes the autorelease pool that calls into Apple's frameworks need.
        signing_s: Seconds that one signature may take.
    """

    def __init__(
        self,
        security: Any,  # noqa: ANN401 - the framework comes without types
        private: object,
        pool: Callable[[], AbstractContextManager[object]],
        signing_s: float = SIGNING_S,
    ) -> None:
        self._security = security
        self._private = private
        self._pool = pool
        self._signing_s = signing_s
        self._public_text = self._read_public_text()

    @property
    def public_text(self) -> str:
        """The public key as attestations carry it: base64 of X‖Y."""
        return self._public_text

    def sign(self, message: bytes) -> str:
        """Base64 DER signature over `message`, hashed once with SHA-256. Takes milliseconds.

        Raises:
            EnclaveError: The enclave does not sign, or not in time.
        """
        return _within(self._signing_s, lambda: self._sign(message))

    def _sign(self, message: bytes) -> str:
        with self._pool():
            signature, error = self._security.SecKeyCreateSignature(
                self._private,
                self._security.kSecKeyAlgorithmECDSASignatureMessageX962SHA256,
                message,
                None,
            )
            if signature is None:
                raise _refused("The Secure Enclave does not sign", error)
            return encode_base64(bytes(signature))

    def _read_public_text(self) -> str:
        with self._pool():
            public = self._security.SecKeyCopyPublicKey(self._private)
            point, error = self._security.SecKeyCopyExternalRepresentation(public, None)
            if point is None:
                raise _refused("The Secure Enclave's public key cannot be read", error)
            raw = bytes(point)
        if len(raw) != _POINT_BYTES or raw[0] != _UNCOMPRESSED:
            raise EnclaveError("The Secure Enclave's public key is not a P-256 point")
        return encode_base64(raw[1:])


def new_key(
    platform: str = sys.platform,
    load: Load = importlib.import_module,
    *,
    creation_s: float = CREATION_S,
    signing_s: float = SIGNING_S,
) -> EnclaveKey:
    """Make a key in this machine's Secure Enclave, and have it prove itself with a signature.

    Call it before the seal closes: it loads native code. May take a second.

    Args:
        platform: `sys.platform`.
        load: Imports `Security` and `objc` (pyobjc).
        creation_s: Seconds that making the key may take.
        signing_s: Seconds that each signature may take.

    Raises:
        EnclaveError: This machine has none, or its system refuses.
    """
    if platform != "darwin":
        raise EnclaveError("This machine has no Secure Enclave", why="it is not a Mac")
    try:
        security, objc = load("Security"), load("objc")
    except ImportError as error:
        raise EnclaveError(
            "The Secure Enclave cannot be asked",
            why=f"{error.name or 'pyobjc'} is not installed",
            next_step="install it: python -m pip install pyobjc-framework-Security",
        ) from None

    def create() -> EnclaveKey:
        with objc.autorelease_pool():
            return EnclaveKey(security, _create(security), objc.autorelease_pool, signing_s)

    key = _within(creation_s, create)
    if not signed.verify(key.public_text, key.sign(_PROBE), _PROBE):
        raise EnclaveError("The Secure Enclave's signature does not verify")
    return key


def _within(seconds: float, work: Callable[[], _T]) -> _T:
    """What `work` returns or raises, if it does so in time.

    The system's key service is another process. Should it hang, then one thread does, which is left
    behind, and not the daemon.
    """
    outcome: SimpleQueue[tuple[_T | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except Exception as error:  # noqa: BLE001 - handed on to who waits
            outcome.put((None, error))

    threading.Thread(target=run, name="enclave", daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except Empty:
        raise EnclaveError(f"The Secure Enclave does not answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast("_T", result)


def _create(security: Any) -> object:  # noqa: ANN401 - as above
    # After the first unlock: a daemon goes on signing while the screen is locked.
    access, error = security.SecAccessControlCreateWithFlags(
        None,
        security.kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly,
        security.kSecAccessControlPrivateKeyUsage,
        None,
    )
    if access is None:
        raise _refused("The Secure Enclave's access control cannot be made", error)
    private, error = security.SecKeyCreateRandomKey(
        {
            security.kSecAttrKeyType: security.kSecAttrKeyTypeECSECPrimeRandom,
            security.kSecAttrKeySizeInBits: _KEY_BITS,
            security.kSecAttrTokenID: security.kSecAttrTokenIDSecureEnclave,
            security.kSecPrivateKeyAttrs: {
                # A permanent key would need a keychain group, which needs a signed application.
                security.kSecAttrIsPermanent: False,
                security.kSecAttrAccessControl: access,
            },
        },
        None,
    )
    if private is None:
        raise _refused("The Secure Enclave makes no key", error)
    return private


def _refused(what: str, error: Any) -> EnclaveError:  # noqa: ANN401 - an NSError
    if error is None:
        return EnclaveError(what)
    code = int(error.code())
    why = f"{error.localizedDescription()} (OSStatus {code})"
    if code == _MISSING_ENTITLEMENT:
        why += "; macOS wants a signed application for this, which this Python is not"
    return EnclaveError(what, why=why)
