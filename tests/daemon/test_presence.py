"""Decision 16's second suspicion: no work, and the coordinator tells others that we are absent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from darkbloom_provider.account.client import CoordinatorClient
from darkbloom_provider.daemon.presence import (
    CHECK_S,
    REASON,
    SETTLED_S,
    SMALL_NETWORK,
    Fleet,
    Listed,
    Presence,
    fleet_of,
    may_be,
)
from darkbloom_provider.errors import UnreachableError
from darkbloom_provider.link.clock import waking_clock
from darkbloom_provider.link.state import LinkState, Phase
from support.daemon_parts import FakeEngine
from support.manual_time import ManualTime, settle
from support.network import network
from support.rest import Answer, Script
from support.scripted_provider import MODEL, Job, scripted_provider
from support.small_provider import small_provider

ME = Listed(64, frozenset({"a", "b"}))
OTHER = Listed(16, frozenset({"a"}))


class FakeLink:
    def __init__(self) -> None:
        self.state = LinkState(url="ws://x", phase=Phase.REGISTERED, registered_at=0.0)
        self.wishes: list[str] = []

    def request_reregister(self, reason: str) -> None:
        self.wishes.append(reason)


class Looks:
    """A presence with its surroundings in hand."""

    def __init__(self) -> None:
        self.time, self.link = ManualTime(), FakeLink()
        self.jobs = 0
        self.fleet: Fleet | Exception = [OTHER, ME]
        self.asked = 0
        self.presence = Presence(
            fleet=self._ask,
            me=lambda: ME,
            link=self.link,
            jobs=lambda: self.jobs,
            clock=self.time.clock,
            chance=lambda: 0.5,
        )

    async def _ask(self) -> Fleet:
        self.asked += 1
        if isinstance(self.fleet, Exception):
            raise self.fleet
        return self.fleet


@pytest.fixture
def looks() -> Looks:
    return Looks()


async def test_decision_16_a_machine_that_left_the_list_registers_again(looks: Looks) -> None:
    await looks.presence.look()
    assert looks.link.wishes == []
    looks.fleet = [OTHER]
    await looks.presence.look()
    assert looks.link.wishes == [REASON]


async def test_an_empty_list_is_an_absence_too(looks: Looks) -> None:
    await looks.presence.look()
    looks.fleet = []
    await looks.presence.look()
    assert looks.link.wishes == [REASON]


async def test_a_list_that_never_held_this_machine_is_not_believed(looks: Looks) -> None:
    looks.fleet = [OTHER]
    for _ in range(5):
        await looks.presence.look()
    assert looks.link.wishes == []


async def test_one_absence_registers_again_once(looks: Looks) -> None:
    await looks.presence.look()
    looks.fleet = []
    for _ in range(5):
        await looks.presence.look()
    assert looks.link.wishes == [REASON]


async def test_while_work_comes_nobody_is_asked(looks: Looks) -> None:
    for _ in range(3):
        looks.jobs += 1
        await looks.presence.look()
    assert looks.asked == 0


@pytest.mark.parametrize("phase", [Phase.CONNECTING, Phase.WAITING, Phase.REFUSED, Phase.DRAINING])
async def test_without_a_registration_nobody_is_asked(looks: Looks, phase: Phase) -> None:
    await looks.presence.look()
    looks.link.state = replace(looks.link.state, phase=phase)
    await looks.presence.look()
    assert looks.asked == 1


async def test_a_fresh_registration_is_not_looked_for_yet(looks: Looks) -> None:
    looks.link.state = replace(looks.link.state, registered_at=looks.time.now - 59)
    await looks.presence.look()
    assert looks.asked == 0


@pytest.mark.parametrize(
    "answer", [None, UnreachableError("no answer"), OSError("no certificates")]
)
async def test_a_coordinator_that_cannot_tell_is_no_reason(
    looks: Looks, answer: Fleet | Exception
) -> None:
    await looks.presence.look()
    looks.fleet = answer
    await looks.presence.look()
    assert looks.link.wishes == []


async def test_it_looks_every_five_minutes(looks: Looks) -> None:
    keeping = asyncio.create_task(looks.presence.keep(looks.time.sleep))
    await looks.time.advance(3 * CHECK_S)
    await settle()
    assert looks.asked == 3
    keeping.cancel()
    await asyncio.wait([keeping])


@pytest.mark.parametrize(
    ("entry", "possible"),
    [
        (ME, True),
        (Listed(64, frozenset({"a"})), True),
        (Listed(64, frozenset()), True),
        (Listed(64, frozenset({"a", "c"})), False),
        (Listed(32, frozenset({"a"})), False),
    ],
)
def test_an_entry_may_be_this_machine_if_nothing_speaks_against_it(
    entry: Listed, *, possible: bool
) -> None:
    assert may_be(entry, ME) is possible


async def test_the_embedded_coordinators_list_is_understood(tmp_path: Path) -> None:
    async def idle(job: Job) -> None:
        del job

    async with network(tmp_path) as net, CoordinatorClient(net.coordinator.base_url) as client:
        assert await fleet_of(client) == ()
        async with scripted_provider(net.ws_url, idle):
            await net.until(lambda: net.verified() == 1)
            assert await fleet_of(client) == [Listed(64, frozenset({MODEL}))]


async def test_a_provider_evicted_without_a_word_comes_back_on_the_same_socket(
    tmp_path: Path,
) -> None:
    """The coordinator forgets it, keeps the socket open and says nothing."""
    async with (
        network(tmp_path) as net,
        CoordinatorClient(net.coordinator.base_url) as client,
        small_provider(net.ws_url, FakeEngine()) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        await provider.until(lambda state: state.phase is Phase.REGISTERED)
        presence = Presence(
            fleet=lambda: fleet_of(client),
            me=lambda: Listed(64, frozenset({MODEL})),
            link=provider.link,
            jobs=lambda: 0,
            clock=lambda: waking_clock() + SETTLED_S,
        )
        await presence.look()
        (evicted,) = net.coordinator.hub.registry
        net.coordinator.hub.registry.remove(evicted)
        await presence.look()
        await net.until(lambda: net.verified() == 1)
        assert (await net.ask()).status_code == 200
        assert Phase.WAITING not in {state.phase for state in provider.states}


async def test_the_list_of_a_large_network_is_not_fetched() -> None:
    script = Script({"GET /health": Answer(body={"status": "ok", "providers": SMALL_NETWORK + 1})})
    async with CoordinatorClient("https://c.example", transport=script.transport()) as client:
        assert await fleet_of(client) is None
    assert script.asked == ["GET /health"]


async def test_lists_are_read_as_documented_null_for_none() -> None:
    script = Script(
        {
            "GET /health": Answer(body={"status": "ok", "providers": 1}),
            "GET /v1/providers/attestation": [
                Answer(body={"providers": None}),
                Answer(body={"providers": [{"memory_gb": 8, "models": None, "serial_number": ""}]}),
            ],
        }
    )
    async with CoordinatorClient("https://c.example", transport=script.transport()) as client:
        assert await fleet_of(client) == []
        assert await fleet_of(client) == [Listed(8, frozenset())]
