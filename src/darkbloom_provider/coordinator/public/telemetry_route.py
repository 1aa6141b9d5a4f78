"""`POST /v1/telemetry/events`: what clients report goes into the structured log."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider import logs
from darkbloom_provider.coordinator.accounts.people import Principal
from darkbloom_provider.coordinator.public import telemetry
from darkbloom_provider.coordinator.public.telemetry import Event
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANYONE, known_caller
from darkbloom_provider.coordinator.rest.queries import refuse
from darkbloom_provider.coordinator.rest.replies import ApiError, json_reply, read_json, rfc3339
from darkbloom_provider.coordinator.rest.shapes import ANYTHING, COUNT, Operation, record
from darkbloom_provider.coordinator.services import Services

_EVERYBODY: Final = "anonymous"
"""All who do not say who they are share one bucket."""
_log = logs.get("telemetry")


def endpoints(services: Services) -> list[Endpoint]:
    """The endpoint, bound to the coordinator's parts."""
    return [
        Endpoint(
            "POST",
            "/v1/telemetry/events",
            _Telemetry(services).receive,
            ANYONE,
            Operation(
                "Report events; a credential is welcome and not needed",
                record(accepted=COUNT, rejected=COUNT),
                record(
                    events={
                        "type": "array",
                        "items": ANYTHING,
                        "description": f"At most {telemetry.MAX_EVENTS} objects with a `message`.",
                    }
                ),
                status=HTTPStatus.ACCEPTED,
                also_statuses=(HTTPStatus.OK,),
                errors=(429,),
            ),
        )
    ]


class _Telemetry:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def receive(self, request: Request) -> Response:
        body = await read_json(request, limit=telemetry.MAX_BODY_BYTES)
        given = body.get("events")
        if not isinstance(given, list):
            raise refuse("events must be a list")
        if not given:
            return json_reply({"accepted": 0, "rejected": 0})
        if len(given) > telemetry.MAX_EVENTS:
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "batch_too_large",
                f"a batch has at most {telemetry.MAX_EVENTS} events",
            )
        who = await known_caller(self._services, request)
        self._admit(who, len(given))
        source = "provider" if who is not None and who.kind == "device_token" else None
        now = self._services.clock()
        events = [telemetry.read_event(event, now=now, source=source) for event in given]
        accepted = [event for event in events if event is not None]
        for event in accepted:
            self._keep(event, who)
        rejected = len(given) - len(accepted)
        return json_reply({"accepted": len(accepted), "rejected": rejected}, HTTPStatus.ACCEPTED)

    def _admit(self, who: Principal | None, events: int) -> None:
        limiter = self._services.limiter
        admitted = (
            limiter.has_room("telemetry_anonymous", _EVERYBODY, events)
            if who is None
            else limiter.has_room("telemetry", who.account_id, events)
        )
        if not admitted:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS, "rate_limited", "too many events; report less"
            )

    def _keep(self, event: Event, who: Principal | None) -> None:
        self._services.metrics.reported(event.source, event.severity, event.kind)
        _log.info(
            "telemetry",
            source=event.source,
            severity=event.severity,
            kind=event.kind,
            at=rfc3339(event.at),
            account=None if who is None else who.account_id,
            message_characters=event.message_characters,
            message_digest=event.message_digest,
            stack_characters=event.stack_characters,
            **{f"event_{name}": word for name, word in event.named.items()},
            **{f"field_{name}": value for name, value in event.fields.items()},
        )
