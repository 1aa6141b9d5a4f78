"""Who may come in at the local endpoint. Pure: headers in, a refusal out.

Loopback keeps other machines out, but not the web pages that are open in a browser on this one: a
page can send requests to any port, under any name that it makes resolve to loopback. So requests
from pages are refused whatever key they bring, and nothing is answered without the key.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol.answers.failure import Failure

RawHeaders = Iterable[tuple[bytes, bytes]]
"""Names in lower case, as ASGI has them."""

_HOST: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_OWN_SITES: Final = {"same-origin", "none"}

STRANGER: Final = Failure(
    HTTPStatus.FORBIDDEN, "this endpoint answers programs on this machine, not web pages"
)
WRONG_HOST: Final = Failure(
    HTTPStatus.FORBIDDEN, "this endpoint answers under the names localhost and 127.0.0.1 only"
)
NO_KEY: Final = Failure(
    HTTPStatus.UNAUTHORIZED,
    "the API key is missing or wrong; `darkbloom status` tells which file holds it",
)


def refusal(headers: RawHeaders, key: Secret | None) -> Failure | None:
    """Why a request is not let in; None if it is.

    Args:
        headers: The request's.
        key: What it must bring as bearer token or `x-api-key`. None: no key is asked for.
    """
    texts: dict[str, str] = {}
    hosts = 0
    for name, value in headers:
        hosts += name == b"host"
        texts[name.decode("latin-1")] = value.decode("latin-1")
    host = texts.get("host", "")
    if hosts != 1 or not _HOST.fullmatch(host):
        return WRONG_HOST
    if texts.get("origin", f"http://{host}") != f"http://{host}":
        return STRANGER
    if texts.get("sec-fetch-site", "none") not in _OWN_SITES:
        return STRANGER
    return None if key is None or _brings(texts, key) else NO_KEY


def _brings(headers: dict[str, str], key: Secret) -> bool:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    brought = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hmac.compare_digest(brought.encode("latin-1"), key.reveal().encode())
