"""Endpoints where owners say where they are paid to, and see how far that is."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.payouts import receivers, withdrawals
from darkbloom_provider.coordinator.payouts.endpoints import (
    SANDBOX,
    USER_OR_MACHINE,
    PayoutEndpoints,
    mark,
    stripe_error,
    user_of,
)
from darkbloom_provider.coordinator.payouts.receivers import PayoutAccount
from darkbloom_provider.coordinator.rails.rail import RailRefusedError, RailUnknownError
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import USER, admitted
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.replies import json_reply, read_body
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    COUNT,
    NUMBER,
    TEXT,
    Operation,
    array,
    one_of,
    optional,
    record,
    texts_or_nothing,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import is_loopback
from darkbloom_provider.protocol.money import MICRO_PER_USD
from darkbloom_provider.protocol.openai import InvalidRequestError, parse_object

DEFAULT_COUNTRY: Final = "US"
_COUNTRY: Final = re.compile(r"[A-Z]{2}", re.ASCII)
_ONBOARDING: Final = one_of("pending", "ready", "restricted", "rejected")


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    receiving = _Receiving(services)
    return [
        Endpoint(
            "POST",
            "/v1/billing/stripe/onboard",
            receiving.onboard,
            USER.limited("financial"),
            Operation(
                "A link, good once, to the page where payouts are set up",
                record(url=TEXT, stripe_account_id=TEXT, status=_ONBOARDING, **SANDBOX),
                texts_or_nothing("return_url", "refresh_url", "country"),
                errors=(502, 503),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/billing/stripe/status",
            receiving.status,
            USER_OR_MACHINE,
            Operation(
                "How far the set-up of payouts is, and what withdrawals cost",
                record(
                    has_account=BOOLEAN,
                    configured=BOOLEAN,
                    stripe_account_id=optional(TEXT),
                    status=optional(_ONBOARDING),
                    destination_type=optional(TEXT),
                    destination_last4=optional(TEXT),
                    instant_eligible=optional(BOOLEAN),
                    min_withdraw_micro_usd=optional(COUNT),
                    instant_fee_bps=optional(COUNT),
                    instant_fee_min_usd=optional(NUMBER),
                    currently_due=optional(array(TEXT)),
                    **SANDBOX,
                ),
                query={"refresh": TEXT},
            ),
        ),
    ]


class _Receiving(PayoutEndpoints):
    """Where somebody is paid to."""

    async def onboard(self, request: Request) -> Response:
        user = user_of(admitted(request))
        desk, now = self.desk(), self.services.clock()
        asked = _lenient(await read_body(request))
        country = asked.get("country", "").upper() or DEFAULT_COUNTRY
        if _COUNTRY.fullmatch(country) is None:
            raise refuse("country must be two letters, as in ISO 3166-1: US")
        back = self._addresses(request, asked)
        known = await self.account(desk, user.account_id)
        try:
            external_id = (
                known.external_id
                if known
                else await desk.rail.open_account(user.account_id, user.email, country)
            )
            await self.services.db.write(
                lambda c: receivers.open_payout_account(
                    c, user.account_id, desk.rail.name, external_id, now=now
                )
            )
            url = await desk.rail.onboarding_link(
                external_id, return_url=back[0], refresh_url=back[1]
            )
        except (RailRefusedError, RailUnknownError) as error:
            raise stripe_error(error) from error
        if desk.rail.sandbox:
            url = self.services.sandbox_setup.link(url, external_id, back[0])
        status = known.onboarding.status if known else "pending"
        return json_reply(
            {"url": url, "stripe_account_id": external_id, "status": status, **mark(desk)}
        )

    def _addresses(self, request: Request, asked: dict[str, str]) -> tuple[str, str]:
        console = self.services.console_url
        default = f"{(console or str(request.base_url)).rstrip('/')}/earn"
        back = asked.get("return_url") or default
        again = asked.get("refresh_url") or back
        for url in (back, again):
            _check_return(url, default, configured=console is not None)
        return back, again

    async def status(self, request: Request) -> Response:
        reader = admitted(request).account_id
        desk, now = self.services.payouts, self.services.clock()
        if desk is None:
            return json_reply({"has_account": False, "configured": False})
        account = await self.account(desk, reader)
        if account is None:
            return json_reply({"has_account": False, "configured": True, **mark(desk)})
        due: dict[str, Any] = {}
        if request.query_params.get("refresh") == "1":
            try:
                fresh = await desk.rail.onboarding(account.external_id)
            except (RailRefusedError, RailUnknownError):
                fresh = None
            due = {"currently_due": list(fresh.currently_due if fresh else ())}
            if fresh is not None:
                found, latest = account.external_id, fresh
                await self.services.db.write(
                    lambda c: receivers.note_onboarding(c, desk.rail.name, found, latest, now=now)
                )
                account = PayoutAccount(account.account_id, account.external_id, fresh)
        onboarding = account.onboarding
        return json_reply(
            {
                "has_account": True,
                "configured": True,
                "stripe_account_id": account.external_id,
                "status": onboarding.status,
                "destination_type": onboarding.destination_type,
                "destination_last4": onboarding.destination_last4,
                "instant_eligible": onboarding.instant_eligible,
                "min_withdraw_micro_usd": withdrawals.MINIMUM,
                "instant_fee_bps": withdrawals.INSTANT_FEE_BPS,
                "instant_fee_min_usd": withdrawals.INSTANT_FEE_MINIMUM / MICRO_PER_USD,
                **due,
                **mark(desk),
            }
        )


def _lenient(body: bytes) -> dict[str, str]:
    """The texts of a body whose every field may be left out, and the body too."""
    try:
        document = parse_object(body)
    except InvalidRequestError:
        return {}
    return {name: value.strip() for name, value in document.items() if isinstance(value, str)}


def _check_return(url: str, default: str, *, configured: bool) -> None:
    """Nobody is sent from the rail's page to somebody else's."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise refuse("return_url and refresh_url must be web addresses") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise refuse("return_url and refresh_url must be web addresses")
    own = host == urlsplit(default).hostname
    if is_loopback(host) or own or (not configured and parts.scheme == "https"):
        return
    raise refuse("return_url and refresh_url must lead to this coordinator's console")
