"""The machines of an account: seeing, linking and unlinking them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Final

from sqlalchemy import Connection
from starlette.responses import Response

from darkbloom_provider import __version__
from darkbloom_provider.coordinator.accounts import device_login
from darkbloom_provider.coordinator.console.gate import Page
from darkbloom_provider.coordinator.console.views import machine as machine_views
from darkbloom_provider.coordinator.console.views import machines as views
from darkbloom_provider.coordinator.console.views.choice import ROWS, read_page
from darkbloom_provider.coordinator.console.views.concerns import Connected, Standards
from darkbloom_provider.coordinator.console.views.earn import Figures, figures
from darkbloom_provider.coordinator.console.views.machine import MachineView
from darkbloom_provider.coordinator.console.views.machines import MachineCard, MachinesView
from darkbloom_provider.coordinator.console.visit import Visit, go
from darkbloom_provider.coordinator.earnings import owner_views
from darkbloom_provider.coordinator.earnings import views as earnings_views
from darkbloom_provider.coordinator.earnings.owner_views import HistoryRow
from darkbloom_provider.coordinator.earnings.views import SeriesPoint, Sum
from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.ledger.earning_totals import EarningsFilter
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.public import releases
from darkbloom_provider.coordinator.rest.replies import ApiError


def machine_names(visit: Visit) -> dict[str, str]:
    """What to call the visitor's machines that are connected now, by identity."""
    return views.names([(m.machine_id, m.name) for m in _connected(visit) if m.machine_id])


async def show(visit: Visit) -> Response:
    """Every machine, with what is wrong with it."""
    return visit.page("machines.html", await visit.read(lambda c: _machines(c, visit)))


async def show_one(visit: Visit) -> Response:
    """One machine: its earnings, its jobs, what it proved."""
    wanted, page = visit.request.path_params["address"], read_page(visit.query)

    def read(connection: Connection) -> MachineView | None:
        card = _machines(connection, visit).find(wanted)
        return None if card is None else _machine(connection, visit, card, page)

    view = await visit.read(read)
    if view is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", "there is no such machine")
    return visit.page("machine.html", view)


def _machines(connection: Connection, visit: Visit) -> MachinesView:
    account, hub = visit.owner.account_id, visit.console.hub
    release = releases.newest(releases.all_releases(connection))
    return views.view(
        _connected(visit),
        device_login.linked_devices(connection, account),
        owner_views.earned_by_machine(connection, account),
        figures=account_figures(connection, visit),
        standards=Standards(
            rules=hub.rules,
            sizes={model.id: model.size_gb for model in visit.console.services.catalogue.entries},
            failures=hub.limits.challenge_failures,
            newest=__version__ if release is None else release.version,
        ),
        now=hub.sources.monotonic(),
    )


def _machine(connection: Connection, visit: Visit, card: MachineCard, page: int) -> MachineView:
    account, known, now = visit.owner.account_id, card.machine_id, visit.console.services.clock()

    def since(length: timedelta) -> Sum:
        if known is None:
            return Sum(0, 0)
        return owner_views.earned_since(connection, account, now - length, machine_id=known)

    points: Sequence[SeriesPoint] = ()
    jobs: Sequence[HistoryRow] = ()
    if known is not None:
        shown = EarningsFilter(start=machine_views.period(now), machine_id=known)
        points = earnings_views.earnings_series(connection, account, bucket="day", chosen=shown)
        jobs = owner_views.history(
            connection,
            account,
            chosen=EarningsFilter(machine_id=known),
            limit=ROWS,
            offset=(page - 1) * ROWS,
        )
    return machine_views.view(
        card,
        last_day=since(timedelta(days=1)),
        last_week=since(timedelta(days=7)),
        points=points,
        jobs=jobs,
        page=page,
        now=now,
        monotonic=visit.console.hub.sources.monotonic(),
    )


def account_figures(connection: Connection, visit: Visit) -> Figures:
    """The numbers of the visitor's account."""
    account, now = visit.owner.account_id, visit.console.services.clock()
    return figures(
        books.balance_of(connection, account),
        earnings_views.account_earnings(connection, account, limit=0).lifetime,
        owner_views.earned_since(connection, account, now - timedelta(days=1)),
        owner_views.earned_since(connection, account, now - timedelta(days=7)),
    )


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
        registered_at=session.registered_at,
        attestation=session.attestation,
    )


PAGES: Final = (
    Page("/machines", show),
    Page("/machines/unlink", None, unlink),
    Page("/machines/{address}", show_one),
    Page("/link", link_form, link),
)
