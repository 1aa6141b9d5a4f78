"""What one coordinator counts about itself. Numbers only: no account, no address and no text.

Names and units follow https://prometheus.io/docs/practices/naming/. Counters start with the
process; what must outlive it is in the ledger.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from darkbloom_provider.coordinator.ledger.reservations import Settlement
from darkbloom_provider.protocol.messages import Usage

OTHER: Final = "other"
"""The route of a request that matched none."""
_HTTP_SECONDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_ROUTING_SECONDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)


class Metrics:
    """The counters, and the registry that they are read from."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "darkbloom_requests",
            "Requests that were accepted, by how their books were closed.",
            ["outcome"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "darkbloom_tokens",
            "Tokens of requests that were paid for.",
            ["kind"],
            registry=self.registry,
        )
        self._money = Counter(
            "darkbloom_job_money_micro_usd",
            "Micro-USD that finished requests moved: charged, given back, paid to owners, kept.",
            ["movement"],
            registry=self.registry,
        )
        self._failures = Counter(
            "darkbloom_settlement_failures",
            "Times that a request's books could not be closed at once.",
            registry=self.registry,
        )
        self._routing = Histogram(
            "darkbloom_routing_decision_seconds",
            "How long it took to choose a provider.",
            buckets=_ROUTING_SECONDS,
            registry=self.registry,
        )
        self._http = Histogram(
            "darkbloom_http_response_start_seconds",
            "From a request to the first byte of its answer.",
            ["method", "route", "status"],
            buckets=_HTTP_SECONDS,
            registry=self.registry,
        )
        self._telemetry = Counter(
            "darkbloom_telemetry_events",
            "Events that clients reported.",
            ["source", "severity", "kind"],
            registry=self.registry,
        )

    def closed(self, settlement: Settlement, usage: Usage | None) -> None:
        """A request's books are closed."""
        self._requests.labels(settlement.outcome).inc()
        moved = {
            "charge": settlement.cost,
            "refund": settlement.refund,
            "payout": settlement.payout,
            "fee": settlement.fee,
        }
        for movement, amount in moved.items():
            self._money.labels(movement).inc(amount)
        if usage is not None:
            self._tokens.labels("prompt").inc(max(usage.prompt_tokens, 0))
            self._tokens.labels("completion").inc(max(usage.completion_tokens, 0))

    def not_closed(self) -> None:
        """They could not be, now."""
        self._failures.inc()

    def routed(self, seconds: float) -> None:
        """A provider was chosen, or none was found."""
        self._routing.observe(max(seconds, 0))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer to an HTTP request began."""
        if route == OTHER:
            method = OTHER  # A stranger may write anything there.
        self._http.labels(method, route, f"{status // 100}xx").observe(max(seconds, 0))

    def reported(self, source: str, severity: str, kind: str) -> None:
        """A client reported an event. Each word is one of a few."""
        self._telemetry.labels(source, severity, kind).inc()
