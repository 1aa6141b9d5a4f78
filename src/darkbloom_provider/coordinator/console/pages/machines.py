"""The machines of an account: seeing, linking and unlinking them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.responses import Response

from darkbloom_provider.coordinator import device_login, owner_views
from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import machines as views
from darkbloom_provider.coordinator.console.views.concerns import Connected
from darkbloom_provider.coordinator.console.visit import Visit, go
from darkbloom_provider.coordinator.registry import Session


def machine_names(visit: Visit) -> dict[str, str]:
    """What to call the visitor's machines that are connected now, by identity."""
    return {machine.machine_id: machine.name for machine in _connected(visit) if machine.machine_id}


async def show(visit: Visit) -> Response:
    """Every machine, with what is wrong with it."""
    account, hub = visit.owner.account_id, visit.console.hub
    devices, earned = await visit.read(
        lambda c: (
            device_login.linked_devices(c, account),
            owner_views.earned_by_machine(c, account),
        )
    )
    view = views.view(
        _connected(visit),
        devices,
        earned,
        rules=hub.rules,
        sizes={model.id: model.size_gb for model in visit.console.services.catalogue.entries},
        now=hub.sources.monotonic(),
    )
    return visit.page("machines.html", view)


async def unlink(visit: Visit) -> Response:
    """Let a machine work for the visitor no more."""
    reply = await visit.ask("DELETE", "/v1/me/devices", {"id": visit.form.get("id", "")})
    if not reply.ok:
        return visit.page(
            "error.html", {"message": reply.message, "next_step": ""}, status=reply.status
        )
    return go("/machines", done="unlinked")


async def link_form(visit: Visit) -> Response:
    """The code, and once it is known what is about to be linked. Never links by itself."""
    code = visit.query.get("code", "").strip()
    if not code:
        return visit.page("link.html", {"code": "", "pending": None})
    return await _confirm(visit, code)


async def link(visit: Visit) -> Response:
    """Approve or deny a code."""
    code = visit.form.get("code", "").strip()
    verdict = "deny" if visit.form.get("verdict") == "deny" else "approve"
    reply = await visit.ask("POST", f"/v1/device/{verdict}", {"user_code": code})
    if reply.ok:
        done = "denied" if verdict == "deny" else "linked"
        return go("/machines", done=done)
    return _refused(visit, code, reply.message, reply.status)


async def _confirm(visit: Visit, code: str) -> Response:
    reply = await visit.ask("GET", "/v1/device/pending", query={"user_code": code})
    if not reply.ok:
        return _refused(visit, code, reply.message, reply.status)
    return visit.page(
        "link.html",
        {
            "code": reply.document["user_code"],
            "pending": views.pending(reply.document, visit.console.services.clock()),
        },
    )


def _refused(visit: Visit, code: str, message: str, status: int) -> Response:
    # What was typed is shown again, but nothing that could not be a code.
    shown = code if len(code) <= 9 else ""  # noqa: PLR2004 - eight letters and a dash
    return visit.page(
        "link.html",
        {"code": shown, "pending": None},
        error=message,
        status=status if status != HTTPStatus.UNAUTHORIZED else HTTPStatus.BAD_REQUEST,
    )


def _connected(visit: Visit) -> list[Connected]:
    account, hub = visit.owner.account_id, visit.console.hub
    now = hub.sources.monotonic()
    return [_snapshot(s, now) for s in hub.registry if s.account_id == account]


def _snapshot(session: Session, now: float) -> Connected:
    token = session.token_sha256
    return Connected(
        candidate=session.candidate(),
        machine_id=session.machine_id,
        token_id=token[: device_login.ID_CHARACTERS] if token else None,
        chip=session.hardware.chip_name,
        model=session.hardware.machine_model,
        gpu_cores=session.hardware.gpu_cores,
        version=session.version,
        attested=session.attested,
        challenge_failures=session.challenge_failures,
        heartbeat_age=max(now - session.heartbeat_at, 0.0),
        active_model=session.active_model,
        requests=session.stats.requests_served,
        tokens=session.stats.tokens_generated,
        jobs_completed=session.jobs_completed,
        jobs_failed=session.jobs_failed,
    )


PAGES: Final = (
    Page("/machines", show),
    Page("/machines/unlink", None, unlink),
    Page("/link", link_form, link),
)
