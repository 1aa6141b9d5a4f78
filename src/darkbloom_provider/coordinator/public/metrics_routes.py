"""Metrics for whoever runs the coordinator: a scraper on this machine, or the operator's key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.accounts.people import AuthenticationError
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.public import gauges
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ADMIN, ANYONE, known_caller
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    NUMBER,
    TEXT,
    Operation,
    array,
    mapping,
    record,
)
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import is_loopback
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError

_TEXT: Final = "text/plain"
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def endpoints(services: Services, hub: Hub) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    shown = _Metrics(services, hub)
    sample = record(name=TEXT, labels=mapping(TEXT), value=NUMBER)
    return [
        Endpoint(
            "GET",
            "/metrics",
            shown.scrape,
            ANYONE,
            Operation(
                "Metrics in Prometheus' text format, for programs on this machine and the operator",
                TEXT,
                media_type=_TEXT,
                errors=(401, 403),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/admin/metrics",
            shown.admin,
            ADMIN,
            Operation(
                "Metrics as JSON, or with `format=prom` as Prometheus reads them",
                record(
                    metrics=array(record(name=TEXT, type=TEXT, help=TEXT, samples=array(sample)))
                ),
                query={"format": TEXT},
                also={_TEXT: TEXT},
            ),
        ),
    ]


class _Metrics:
    def __init__(self, services: Services, hub: Hub) -> None:
        self._services = services
        self._registry = services.metrics.registry
        self._network = gauges.NetworkGauges(hub)

    async def scrape(self, request: Request) -> Response:
        if not _on_this_machine(request, behind_proxy=self._services.behind_proxy):
            who = await known_caller(self._services, request)
            if who is None:
                raise AuthenticationError("From elsewhere this needs the operator's key")
            if who.kind == "device_token" or not who.is_admin:
                raise AuthenticationError(
                    "This is for the operator only", status=403, error_type="forbidden"
                )
        return await self._text()

    async def admin(self, request: Request) -> Response:
        if request.query_params.get("format") == "prom":
            return await self._text()
        families = (await self._everything()).collect()
        return json_reply({"metrics": [_family(family) for family in families]})

    async def _text(self) -> Response:
        text = generate_latest(await self._everything())
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _everything(self) -> CollectorRegistry:
        try:
            held = await self._services.db.read(gauges.money)
        except LedgerUnavailableError:
            held = None
        registry = CollectorRegistry()
        registry.register(_All(self._registry, self._network, list(gauges.ledger_gauges(held))))
        return registry


class _All(Collector):
    """Counters, and what is only known at the moment of looking."""

    def __init__(
        self, counters: CollectorRegistry, network: Collector, ledger: list[Metric]
    ) -> None:
        self._counters = counters
        self._network = network
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        for family in self._counters.collect():
            # When each counter was made doubles the series and is nobody's question.
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
        yield from self._network.collect()
        yield from self._ledger


def _family(family: Metric) -> dict[str, Any]:
    return {
        "name": family.name,
        "type": family.type,
        "help": family.documentation,
        "samples": [
            {"name": sample.name, "labels": dict(sample.labels), "value": float(sample.value)}
            for sample in family.samples
        ],
    }


def _on_this_machine(request: Request, *, behind_proxy: bool) -> bool:
    """Whether a program here asks: not a proxy for strangers, and not a web page in a browser.

    A page that had its name resolve to this machine would still name itself as the host.
    """
    if behind_proxy or any(name in request.headers for name in _FORWARDED):
        return False
    client, host = request.client, request.url.hostname
    return client is not None and is_loopback(client.host) and is_loopback(host or "")
