"""`GET /v1/admin/routing`: who would get a request for a model now, and why not the others."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.rest import queries
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ADMIN
from darkbloom_provider.coordinator.rest.replies import ApiError, json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    BOOLEAN,
    COUNT,
    NON_EMPTY,
    NUMBER,
    TEXT,
    Operation,
    array,
    maybe,
    record,
)
from darkbloom_provider.coordinator.routing.advice import TODO
from darkbloom_provider.coordinator.routing.choice import (
    Demand,
    Weighed,
    max_concurrency,
    queue_depth,
    weigh,
)
from darkbloom_provider.coordinator.routing.costs import CostTerms
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.protocol.openai import DEFAULT_MAX_TOKENS

PROMPT_TOKENS: Final = 500
"""Of the request that is asked about, unless said otherwise; about a page of text."""
_SHOWN_MODELS: Final = 20

_TOKENS: Final = {
    "anyOf": [{**COUNT, "maximum": queries.MAX_TOKENS}, {"type": "string", "maxLength": 0}]
}


def endpoint(services: Services, hub: Hub) -> Endpoint:
    """The endpoint's declaration, bound to the coordinator's parts."""
    reason = record(code=TEXT, text=TEXT, next_step=TEXT)
    provider = record(
        provider_id=TEXT,
        chip_name=TEXT,
        hardware_model=TEXT,
        version=TEXT,
        trust_level=TEXT,
        chosen=BOOLEAN,
        eligible=BOOLEAN,
        reasons=array(reason),
        cost_ms=NUMBER,
        cost_terms_ms=record(**dict.fromkeys(CostTerms._fields, NUMBER)),
        queue=COUNT,
        in_flight=COUNT,
        max_in_flight=COUNT,
    )
    return Endpoint(
        "GET",
        "/v1/admin/routing",
        _Routing(services, hub).explained,
        ADMIN,
        Operation(
            "Who would get a request for a model now, and why the others would not",
            record(
                model=TEXT,
                prompt_tokens=COUNT,
                max_tokens=COUNT,
                waiting=COUNT,
                waiting_limit=COUNT,
                summary=TEXT,
                next_step=maybe(TEXT),
                providers=array(provider),
            ),
            query={"model": NON_EMPTY, "prompt_tokens": _TOKENS, "max_tokens": _TOKENS},
            required_query=("model",),
            errors=(404,),
        ),
    )


class _Routing:
    def __init__(self, services: Services, hub: Hub) -> None:
        self._services = services
        self._hub = hub

    async def explained(self, request: Request) -> Response:
        query, hub = request.query_params, self._hub
        demand = self._demand(query)
        now, sessions = hub.sources.monotonic(), {s.id: s for s in hub.registry}
        found = weigh(hub.registry.candidates(), demand, hub.rules, now=now)
        summary, next_step = _summary(found, demand.model)
        return json_reply(
            {
                "model": demand.model,
                "prompt_tokens": demand.prompt_tokens,
                "max_tokens": demand.max_output_tokens,
                "waiting": hub.waiting(demand.model),
                "waiting_limit": hub.limits.queue_per_model,
                "summary": summary,
                "next_step": next_step,
                "providers": [
                    self._provider(w, sessions[w.candidate.session_id], demand.model) for w in found
                ],
            }
        )

    def _demand(self, query: queries.Query) -> Demand:
        model = query.get("model", "")
        if not model:
            raise queries.refuse("model must be named, for example ?model=ID")
        prompt = queries.tokens(query, "prompt_tokens", PROMPT_TOKENS)
        answer = queries.tokens(query, "max_tokens", DEFAULT_MAX_TOKENS)
        active = {m.id: m for m in self._services.catalogue.entries if m.active}
        if model not in active:
            known = ", ".join(sorted(active)[:_SHOWN_MODELS]) or "nothing"
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                "model_not_found",
                f"there is no model {model[:200]!r} in this network's catalogue; it has: {known}",
            )
        return Demand(model, prompt, answer, active[model].size_gb)

    def _provider(self, weighed: Weighed, session: Session, model: str) -> dict[str, Any]:
        candidate = weighed.candidate
        return {
            "provider_id": session.id,
            "chip_name": session.hardware.chip_name,
            "hardware_model": session.hardware.machine_model,
            "version": session.version,
            "trust_level": candidate.trust,
            "chosen": weighed.shortlisted,
            "eligible": not weighed.reasons,
            "reasons": [
                {"code": r.code, "text": r.text, "next_step": TODO[r.code]} for r in weighed.reasons
            ],
            "cost_ms": round(sum(weighed.cost), 3),
            "cost_terms_ms": {k: round(v, 3) for k, v in weighed.cost._asdict().items()},
            "queue": queue_depth(candidate, model),
            "in_flight": len(candidate.in_flight),
            "max_in_flight": max_concurrency(candidate, self._hub.rules),
        }


def _summary(found: list[Weighed], model: str) -> tuple[str, str | None]:
    """The answer in one sentence, and what to do if it is not the wanted one."""
    if not found:
        return (
            "No provider is connected",
            "type on a Mac: `darkbloom serve --coordinator URL`, with this coordinator's address",
        )
    chosen = sum(w.shortlisted for w in found)
    if chosen == 1:
        return "One provider would get it", None
    if chosen:
        return f"Chance would decide among {chosen} providers, which are equally good", None
    if not any(model in w.candidate.models for w in found):
        return (
            "No connected provider serves this model",
            f"type on a Mac that has room for it: `darkbloom serve --model {model}`",
        )
    if all({r.code for r in w.reasons} <= {"busy"} for w in found if model in w.candidate.models):
        return (
            "Every provider of this model is busy; requests wait",
            "wait, or link another machine; `serve --max-requests N` allows more at once",
        )
    return "No provider may serve it now", "see the reasons of each provider"
