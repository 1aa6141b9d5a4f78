"""API keys: made, shown once, revoked."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from darkbloom_provider.coordinator.accounts import api_keys
from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views.samples import samples
from darkbloom_provider.coordinator.console.visit import Visit, go


async def show(visit: Visit) -> Response:
    """The active keys, as far as they may be shown."""
    return await _page(visit)


async def create(visit: Visit) -> Response:
    """Make a key. This reply is the only one that it stands in."""
    reply = await visit.ask("POST", "/v1/auth/keys", {"name": visit.form.get("name", "")})
    if not reply.ok:
        return await _page(visit, error=reply.message, status=reply.status)
    return await _page(visit, new_key=str(reply.document["api_key"]))


async def revoke(visit: Visit) -> Response:
    """Let nobody in with a key any more."""
    reply = await visit.ask("DELETE", "/v1/auth/keys", {"id": visit.form.get("id", "")})
    if not reply.ok:
        return await _page(visit, error=reply.message, status=reply.status)
    return go("/keys", done="revoked")


async def _page(
    visit: Visit, *, new_key: str = "", error: str = "", status: int = HTTPStatus.OK
) -> Response:
    account = visit.owner.account_id
    keys = await visit.read(lambda c: api_keys.list_api_keys(c, account))
    offered = [model.id for model in visit.console.services.catalogue.entries if model.active]
    view = {
        "keys": keys,
        "new_key": new_key,
        "base_url": visit.base_url,
        "samples": samples(visit.base_url, offered[0] if offered else "MODEL"),
    }
    return visit.page("keys.html", view, error=error, status=status)


PAGES: Final = (Page("/keys", show, create), Page("/keys/revoke", None, revoke))
