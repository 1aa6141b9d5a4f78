"""Passwords: checked for length, hashed with Argon2id, compared in the same time for everybody.

Parameters: RFC 9106's second recommendation (64 MiB, three passes, four lanes), argon2-cffi's own
default. Hashing runs on threads, and only a few at a time: each one takes that memory.
"""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from darkbloom_provider.coordinator.rest.refusals import RefusalError
from darkbloom_provider.errors import ExitCode
from darkbloom_provider.logs import Secret

MIN_CHARACTERS: Final = 10
MAX_CHARACTERS: Final = 256
AT_A_TIME: Final = 2


class WeakPasswordError(RefusalError):
    """A password that is refused. Says what is asked for, never what was given."""

    exit_code = ExitCode.USAGE


def checked(text: str, *, email: str) -> Secret:
    """A new password in the form it is hashed in.

    Raises:
        WeakPasswordError: It is too short, too long, or the e-mail address.
    """
    password = unicodedata.normalize("NFC", text)
    if not MIN_CHARACTERS <= len(password) <= MAX_CHARACTERS:
        raise WeakPasswordError(
            f"A password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters",
            next_step="a few words that nobody else would put together are easy to remember",
        )
    if password.casefold() == email.strip().casefold():
        raise WeakPasswordError("The e-mail address is no password")
    return Secret(password)


class Passwords:
    """Hashes and compares."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._slots = asyncio.Semaphore(AT_A_TIME)
        # Compared with where there is no account, so that the time tells nobody.
        self._nobody = self._hasher.hash("")

    def hashed(self, password: Secret) -> str:
        """The hash of a checked password, with its salt and parameters. Takes a while."""
        return self._hasher.hash(_bytes(password.reveal()))

    def matches(self, stored: str | None, given: str) -> bool:
        """Whether `given` is the password behind `stored`. Takes a while, also for None."""
        normal = unicodedata.normalize("NFC", given[: MAX_CHARACTERS * 4])
        try:
            self._hasher.verify(stored or self._nobody, _bytes(normal))
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None

    async def hash(self, password: Secret) -> str:
        """`hashed`, on a thread."""
        async with self._slots:
            return await asyncio.to_thread(self.hashed, password)

    async def match(self, stored: str | None, given: str) -> bool:
        """`matches`, on a thread."""
        async with self._slots:
            return await asyncio.to_thread(self.matches, stored, given)


def _bytes(text: str) -> bytes:
    # JSON may carry lone surrogates; they are a wrong password, not a crash.
    return text.encode("utf-8", "surrogatepass")
