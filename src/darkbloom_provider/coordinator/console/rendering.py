"""From a view to a page: templates, the files they link to, and what every page is sent with."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from darkbloom_provider.coordinator.console import writing
from darkbloom_provider.coordinator.payouts.rail import ETA

PACKAGE: Final = "darkbloom_provider.coordinator.console"
STATIC: Final = {
    "console.css": "text/css",
    "icon.svg": "image/svg+xml",
    "live.js": "text/javascript",
}
ASSET_LIFETIME_S: Final = 31_536_000

POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing inline, nothing from elsewhere. The one script there is refreshes what is shown."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`: with it browsers leave out the Origin that forms are checked by.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Assets:
    """The files that pages link to, named by their content so that browsers may keep them."""

    def __init__(self) -> None:
        folder = resources.files(PACKAGE).joinpath("static")
        self._files = {name: folder.joinpath(name).read_bytes() for name in STATIC}

    def address(self, name: str) -> str:
        """Where a file is found."""
        version = hashlib.sha256(self._files[name]).hexdigest()[:12]
        return f"/static/{name}?v={version}"

    def reply(self, name: str) -> Response | None:
        """A file; None if there is none of this name."""
        if name not in self._files:
            return None
        cached = {"Cache-Control": f"public, max-age={ASSET_LIFETIME_S}, immutable"}
        return Response(self._files[name], media_type=STATIC[name], headers=cached)


class Pages:
    """The templates."""

    def __init__(self, assets: Assets) -> None:
        self._templates = Environment(
            loader=PackageLoader(PACKAGE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["asset"] = assets.address
        self._templates.globals["eta"] = ETA
        self._templates.filters |= {
            "usd": writing.usd,
            "cents": writing.cents,
            "price": writing.price,
            "count": writing.count,
            "counted": writing.counted,
            "model_name": writing.model_name,
            "masked": writing.masked,
            "ago": writing.ago,
            "moment": writing.moment,
            "commands": writing.commands,
        }

    def html(self, template: str, context: dict[str, Any], *, status: int = 200) -> Response:
        """A page. It is about its visitor, so nobody keeps it."""
        text = self._templates.get_template(template).render(context)
        return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})
