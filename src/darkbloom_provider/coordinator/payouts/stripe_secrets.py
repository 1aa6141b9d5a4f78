"""Where Stripe's secrets come from: the environment, a private file, or the system's keyring."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import keyring
from keyring.errors import KeyringError

from darkbloom_provider.errors import UsageError
from darkbloom_provider.logs import Secret

SERVICE: Final = "darkbloom-coordinator"

Name = Literal["secret-key", "webhook-secret", "checkout-webhook-secret"]


def stripe_secret(
    name: Name,
    *,
    directory: Path,
    environ: Mapping[str, str],
    ask_keyring: Callable[[str, str], str | None] = keyring.get_password,
) -> Secret | None:
    """`DARKBLOOM_STRIPE_…`, else the file `stripe-…` of the data directory, else the keyring.

    Never an argument of the command line, which others on the machine can see.

    Raises:
        UsageError: The file can be read by others, or not at all.
    """
    variable = f"DARKBLOOM_STRIPE_{name.replace('-', '_').upper()}"
    given = environ.get(variable, "").strip()
    if given:
        return Secret(given)
    path = directory / f"stripe-{name}"
    if path.exists():
        return _of_file(path)
    try:
        kept = ask_keyring(SERVICE, f"stripe-{name}")
    except KeyringError:
        # No keyring here: then nothing is in it.
        return None
    return Secret(kept) if kept else None


def _of_file(path: Path) -> Secret:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(
            f"{path} can be read by others",
            why=f"its mode is {mode:04o}",
            next_step=f"chmod 600 {path}, and make a new key: this one may be known",
        )
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read") from error
    if not text:
        raise UsageError(f"{path} is empty", next_step="put the secret into it, on one line")
    return Secret(text)
