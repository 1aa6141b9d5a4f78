"""The frame of the sandboxes' pages: they lead nowhere else, and say that no money moves."""

from __future__ import annotations

import base64
import hashlib
from http import HTTPStatus
from typing import Final

from starlette.responses import HTMLResponse, Response

_STYLE: Final = (
    ":root{color-scheme:light dark;--paper:#fbfaff;--ink:#1e1b29;--raised:#fff;--accent:#6d28d9;"
    "--wait:#835009;--wait-soft:#fdf0d2}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14121b;--ink:#ece9f5;--raised:#1d1a27;"
    "--accent:#b79cff;--wait:#f2c46d;--wait-soft:#3a2c0f}}"
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:2rem auto;padding:0 1rem;"
    "background:var(--paper);color:var(--ink)}"
    "h1{font-size:1.75rem;line-height:1.2}a{color:var(--accent)}"
    "button{font:inherit;font-weight:600;padding:.75rem 1rem;width:100%;cursor:pointer;"
    "background:var(--raised);color:var(--accent);border:1px solid;border-radius:.375rem}"
    ":focus-visible{outline:3px solid var(--accent);outline-offset:2px}"
    ".sandbox{border-left:4px solid var(--wait);background:var(--wait-soft);"
    "border-radius:.25rem;padding:.75rem 1rem}"
)
"""The colours are the console's."""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_HEADERS: Final = {
    # The one style on the page, by its hash: nothing else is let in.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def sandbox_page(title: str, content: str, status: int = HTTPStatus.OK) -> Response:
    """A page. `content` is HTML."""
    document = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Sandbox: {title}</title><style>{_STYLE}</style><main><h1>{title}</h1>"
        '<p class="sandbox"><strong>Sandbox:</strong> no real money moves, and no bank is asked.'
        f"</p>{content}</main></html>"
    )
    return HTMLResponse(document, status, headers=_HEADERS)
