"""The operating system's keyring, with every way it can fail turned into one error.

keyring's back ends talk to D-Bus or to the Keychain: they may be missing (headless Linux, ssh on
macOS), locked, or wait for a person who is not there. Calls therefore run in a thread of their own
and are given up on after a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from keyring.backend import KeyringBackend

SERVICE = "io.darkbloom.provider"
BACKEND_VARIABLE = "PYTHON_KEYRING_BACKEND"
PATIENCE_S = 30.0
"""A person may have to unlock the keyring first."""

T = TypeVar("T")


class KeyringUnavailableError(Exception):
    """There is no keyring, or it does not let us in. The text says which, without a secret."""


class SystemKeyring:
    """The keyring that `keyring` chooses for this system, or the one that `environ` names.

    Every method raises `KeyringUnavailableError` and nothing else.
    """

    def __init__(self, environ: Mapping[str, str], *, patience_s: float = PATIENCE_S) -> None:
        self._named = environ.get(BACKEND_VARIABLE)
        self._patience_s = patience_s

    def read(self, user: str) -> str | None:
        """The text kept for `user`, or None."""
        return self._call(lambda backend: backend.get_password(SERVICE, user))

    def write(self, user: str, text: str) -> None:
        """Keep `text` for `user`, and prove it by reading it back."""

        def write_and_prove(backend: KeyringBackend) -> bool:
            backend.set_password(SERVICE, user, text)
            return backend.get_password(SERVICE, user) == text

        if not self._call(write_and_prove):
            # keyring's "null" back end, chosen by `keyring --disable`, swallows what it is given.
            raise KeyringUnavailableError("the system's keyring is switched off")

    def remove(self, user: str) -> bool:
        """Forget `user`. False if there was nothing to forget."""

        def remove(backend: KeyringBackend) -> bool:
            if backend.get_password(SERVICE, user) is None:
                return False
            backend.delete_password(SERVICE, user)
            return True

        return self._call(remove)

    def _call(self, work: Callable[[KeyringBackend], T]) -> T:
        results: list[T] = []
        failures: list[str] = []

        def run() -> None:
            try:
                results.append(work(self._backend()))
            except Exception as error:  # noqa: BLE001 - back ends raise whatever their bus raises
                failures.append(_reason(error))

        # A daemon thread: one that hangs on a dead bus must not keep the process from ending.
        thread = threading.Thread(target=run, name="keyring", daemon=True)
        thread.start()
        thread.join(self._patience_s)
        if results:
            return results[0]
        reason = failures[0] if failures else f"it did not answer within {self._patience_s:g} s"
        raise KeyringUnavailableError(reason)

    def _backend(self) -> KeyringBackend:
        import keyring.core  # noqa: PLC0415 - slow to import, and only needed when asked

        if self._named:
            return keyring.core.load_keyring(self._named)
        return keyring.core.get_keyring()


def _reason(error: Exception) -> str:
    # Only the kind of the error is passed on: what a back end writes into its message is not ours.
    import keyring.errors  # noqa: PLC0415 - as above

    if isinstance(error, keyring.errors.NoKeyringError):
        return "this system has no keyring"
    if isinstance(error, keyring.errors.KeyringLocked):
        return "the system's keyring is locked"
    return f"the system's keyring failed ({type(error).__name__})"
