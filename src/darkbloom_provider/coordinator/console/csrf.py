"""Protection of forms against other sites: a form must show what only its own page could know.

The proof is made from the secret in the visitor's cookie, which no script and no other site can
read, so nothing is kept on our side and any coordinator can check it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final
from urllib.parse import urlsplit

FIELD: Final = "csrf"
VISITOR_BYTES: Final = 16

_PURPOSE: Final = b"darkbloom console form"


def proof(secret: str) -> str:
    """What the forms of the holder of this cookie carry."""
    return hmac.new(secret.encode(), _PURPOSE, hashlib.sha256).hexdigest()


def shown(given: str, secret: str | None) -> bool:
    """Whether a form was on a page that we gave to the holder of this cookie."""
    if not secret:
        return False
    return hmac.compare_digest(proof(secret).encode(), given.encode("utf-8", "surrogatepass"))


def same_site(*, origin: str | None, fetch_site: str | None, hosts: frozenset[str]) -> bool:
    """Whether a browser says that a form was sent from one of our own pages.

    Args:
        origin: The `Origin` header; a browser that leaves it out is judged by the proof alone.
        fetch_site: The `Sec-Fetch-Site` header, likewise.
        hosts: Our own names, with port, as in `Host`.
    """
    if fetch_site is not None and fetch_site not in {"same-origin", "none"}:
        return False
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() in hosts
    except ValueError:
        return False
