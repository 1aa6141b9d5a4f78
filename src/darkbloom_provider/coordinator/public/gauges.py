"""What the network is when somebody looks: providers, requests, the ledger's own accounts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from darkbloom_provider.coordinator.ledger import books
from darkbloom_provider.coordinator.providers.hub import Hub

MONEY: Final[Mapping[str, tuple[str, int]]] = {
    "deposited": (books.DEPOSITS, -1),
    "granted": (books.GRANTS, -1),
    "reserved": (books.RESERVATIONS, 1),
    "unclaimed": (books.UNCLAIMED, 1),
    "fees": (books.PLATFORM, 1),
    "withdrawing": (books.WITHDRAWALS, 1),
    "paid_out": (books.PAID_OUT, 1),
}
"""Internal accounts by what they mean, and the sign that makes them positive."""


def money(connection: Connection) -> dict[str, int]:
    """What the ledger's internal accounts hold, micro-USD. Nobody's own account is among them."""
    return {
        name: sign * books.balance_of(connection, account).balance
        for name, (account, sign) in MONEY.items()
    }


class NetworkGauges(Collector):
    """The hub, looked at."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """The gauges as they are now."""
        sessions = list(self._hub.registry)
        providers = GaugeMetricFamily(
            "darkbloom_providers",
            "Connected providers.",
            labels=["status", "trust"],
        )
        kinds = Counter((session.status, session.trust) for session in sessions)
        for (status, trust), count in sorted(kinds.items()):
            providers.add_metric([status, trust], count)
        yield providers
        for name, help_text, value in (
            ("requests_open", "Requests that are being served or wait.", self._hub.requests.count),
            ("queue_length", "Requests that wait for a provider.", self._hub.queue_length),
            (
                "requests_in_flight",
                "Requests at a provider.",
                sum(len(session.attempts) for session in sessions),
            ),
        ):
            yield GaugeMetricFamily(f"darkbloom_{name}", help_text, value=value)


def ledger_gauges(held: Mapping[str, int] | None) -> Iterator[Metric]:
    """The ledger's accounts; only that it does not answer if `held` is None."""
    yield GaugeMetricFamily(
        "darkbloom_ledger_up", "Whether the ledger can be read.", value=held is not None
    )
    if held is not None:
        family = GaugeMetricFamily(
            "darkbloom_ledger_micro_usd",
            "What the ledger's internal accounts hold.",
            labels=["account"],
        )
        for name, amount in held.items():
            family.add_metric([name], amount)
        yield family
