"""The frame of the sandboxes' pages: they lead nowhere else, and say that no money moves."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.responses import HTMLResponse, Response

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def sandbox_page(title: str, content: str, status: int = HTTPStatus.OK) -> Response:
    """A page. `content` is HTML."""
    document = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Sandbox: {title}</title>"
        "<style>:root{color-scheme:light dark}body{font:1rem system-ui;max-width:32rem;"
        "margin:2rem auto;padding:0 1rem}button{font:inherit;padding:.6rem 1rem;width:100%}"
        f"</style><h1>{title}</h1>"
        "<p><strong>Sandbox: no real money moves, and no bank is asked.</strong></p>"
        f"<main>{content}</main></html>"
    )
    return HTMLResponse(document, status, headers=_HEADERS)
