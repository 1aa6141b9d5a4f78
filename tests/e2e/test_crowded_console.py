"""The console with more in it than fits: many machines, long names, huge and tiny amounts."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from darkbloom_provider.coordinator.console.views.machines import address
from darkbloom_provider.coordinator.ledger.reservations import Serving
from darkbloom_provider.coordinator.settings import Payouts, Policy
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store import schema
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    BackendSlot,
    ModelInfo,
    SystemMetrics,
)
from darkbloom_provider.protocol.money import Price
from support.books import QWEN_PRICE, Clock, Shop, add_up_again
from support.browsing import every_page_is_sound
from support.chromium import chromium
from support.network import Network, network
from support.sessions import connected

OWNER = "an-owner-with-a-rather-long-name@a-subdomain-of.example.org"
MACHINES = 20
OWNERS = 60
JOBS = 300
WITHDRAWALS = 30
LONG = "a-community-with-a-long-name/" + "-".join(["An-Exceedingly-Long-Model-Name"] * 4) + "-8bit"
TOKENS = (1, 380, 25_000, 40_000_000)
PRICES = (QWEN_PRICE, Price(100_000, 7_800_000_000))
"""One job earns from a micro-dollar to hundreds of thousands of dollars."""
PATHS = (
    "/earn",
    "/earn?span=hour",
    "/earn?page=6",
    "/earn/withdraw",
    "/earn/withdrawals",
    "/machines",
    "/keys",
    "/leaderboard",
    "/models",
    "/stats",
)


def identity(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


async def crowd(net: Network, clock: Clock, owner: str) -> None:
    """Weeks of an owner's work, and that of many other owners beside it."""
    operator, policy = net.coordinator.operator, Policy()
    others = [await operator.create_user(f"{number}@example.org") for number in range(OWNERS)]

    def work(connection: Connection) -> None:
        shop = Shop(connection, policy, clock=clock)
        shop.deposit(10**16, net.account)
        for number in range(JOBS):
            clock.forward(timedelta(minutes=200))
            serve(shop, net.account, owner, number)
        for number, account in enumerate(others):
            serve(shop, net.account, account, JOBS + number)
        long = update(schema.earnings).where(schema.earnings.c.id % 7 == 0).values(model=LONG)
        connection.execute(long)
        add_up_again(connection)

    await net.coordinator.services.db.write(work)


def serve(shop: Shop, consumer: str, owner: str, number: int) -> None:
    machine = identity(number % (MACHINES + 5))
    name, written = f"request-{number}", TOKENS[number % len(TOKENS)]
    shop.price = PRICES[number % 25 == 3]
    shop.reserve(name, 10**13, consumer)
    shop.settle(name, 120, written, serving=Serving(name, "key", owner, None, machine))


def machines(net: Network, clock: Clock, owner: str) -> None:
    """Machines with every kind of trouble."""
    monotonic = net.coordinator.hub.sources.monotonic()
    metrics = [
        SystemMetrics(),
        SystemMetrics(thermal_state="critical", memory_pressure=0.97, cpu_usage=1.0),
        SystemMetrics(thermal_state="fair"),
    ]
    models = tuple(ModelInfo(id=f"{LONG}-{number}") for number in range(6))
    slots = tuple(
        BackendSlot(model=model.id, state=state, num_running=7, active_tokens=123_456_789)
        for model, state in zip(models, ("running", "crashed", "idle_shutdown"), strict=False)
    )
    for number in range(MACHINES):
        session = connected(
            owner,
            now=clock(),
            monotonic=monotonic,
            machine_id=identity(number),
            models=models if number % 3 else models[:1],
            metrics=metrics[number % 3],
            capacity=BackendCapacity(slots=slots) if number % 4 == 0 else None,
            challenge_failures=3 if number % 5 == 0 else 0,
            version="0.0.1" if number % 6 == 0 else "0.4.7",
            jobs_completed=20,
            jobs_failed=30 if number % 7 == 0 else 0,
        )
        net.coordinator.hub.registry.add(session)


async def withdraw(net: Network, session: str) -> None:
    """Set up a sandbox account, and take money out many times."""
    bearer = {"Authorization": f"Bearer {session}"}
    back = {"return_url": f"{net.coordinator.base_url}/earn", "country": "US"}
    reply = await net.http.post("/v1/billing/stripe/onboard", json=back, headers=bearer)
    await net.http.post(reply.json()["url"], data={"destination": "card"})
    for number in range(WITHDRAWALS):
        body = {
            "amount_usd": f"{number * 1234 + 1}.5",
            "method": ("instant", "standard")[number % 2],
        }
        reply = await net.http.post("/v1/billing/withdraw/stripe", json=body, headers=bearer)
        assert reply.status_code < 300, reply.text


@pytest.mark.timeout(400)
async def test_pages_hold_up_under_a_lot_of_everything(tmp_path: Path) -> None:
    clock = Clock()
    async with (
        chromium() as browser,
        network(tmp_path, payouts=Payouts(), sources=Sources(now=clock)) as net,
    ):
        owner = await net.coordinator.operator.create_user(OWNER)
        await crowd(net, clock, owner)
        machines(net, clock, owner)
        session = net.coordinator.operator.session_token(owner).reveal()
        await withdraw(net, session)
        for name in ("laptop", "x" * 64, "the script that asks every night " * 2):
            await net.coordinator.operator.create_api_key(owner, name=name.strip()[:64])
        base = net.coordinator.base_url
        paths = (*PATHS, f"/machines/{address(identity(0))}", f"/machines/{address(identity(1))}")
        await every_page_is_sound(browser, base, session, paths, "crowd", examined=["phone"])
        consumer = net.session().reveal()
        await every_page_is_sound(browser, base, consumer, ("/billing",), "crowd-consumer")
