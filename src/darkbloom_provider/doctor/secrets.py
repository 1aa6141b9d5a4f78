"""Takes secrets out of everything that is shown or bundled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from darkbloom_provider import logs
from darkbloom_provider.account.credentials import API_KEY_VARIABLE
from darkbloom_provider.logs import REDACTED
from darkbloom_provider.paths import Home

_USER_INFO: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SHORTEST: Final = 8
"""Characters; what is shorter is no secret, and taking it out would make holes everywhere."""
_LONGEST: Final = 4096


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets of one home, to be found again in any text."""

    known: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, home: Home, environ: Mapping[str, str]) -> Secrets:
        """What the home's secret files and the environment hold. Reads nothing from a keyring."""
        known = [environ.get(API_KEY_VARIABLE, "")]
        for path in (home.wallet_key, home.machine_id, home.local_key):
            try:
                known.append(path.read_bytes()[:_LONGEST].decode(errors="replace").strip())
            except OSError:
                continue
        return cls(tuple(secret for secret in known if len(secret) >= _SHORTEST))

    def removed_from(self, text: str) -> str:
        """`text` without the known secrets, anything shaped like a token, and logins in URLs."""
        for secret in self.known:
            text = text.replace(secret, REDACTED)
        return _USER_INFO.sub(REDACTED, logs.redact(text))
