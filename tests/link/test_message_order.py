"""Requests and cancels in every order, twice, late and on another connection."""

from __future__ import annotations

import itertools
from collections import defaultdict

from darkbloom_provider.link.state import Phase
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Cancel,
    CoordinatorMessage,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceResponseChunk,
    ProviderMessage,
    Register,
)
from support.daemon_parts import FakeEngine
from support.manual_time import ManualTime
from support.scripted_coordinator import Peer, scripted_coordinator
from support.sealed_requests import request_for
from support.small_provider import small_provider


async def test_in_whatever_order_they_come_a_request_is_answered_once_and_a_cancel_obeyed() -> None:
    """Every order of: a request, its repetition, its cancel, another request, its late cancel."""
    session = KeyPair.generate()
    async with (
        scripted_coordinator() as coordinator,
        small_provider(coordinator.url, FakeEngine(), sleep=ManualTime().sleep) as provider,
    ):
        peer = await coordinator.next_peer()
        await peer.accept()
        for number, order in enumerate(itertools.permutations(range(5))):
            a, b = f"a-{number}", f"b-{number}"
            asked = request_for(provider.keys.public_text, session, a)
            other = request_for(provider.keys.public_text, session, b)
            messages: list[CoordinatorMessage] = [
                asked,
                asked,
                Cancel(request_id=a),
                other,
                Cancel(request_id="nobody"),
            ]
            for at in order:
                await peer.say(messages[at])
            heard = await everything_until(peer, f"after {number}")
            await provider.runner.idle()
            heard += await everything_until(peer, f"really after {number}")
            by_id = sorted_by_request(heard)
            assert kinds(by_id[b]) == ["accepted", "chunks", "complete"], order
            assert kinds(by_id[a]) in ([], ["accepted"], ["accepted", "chunks"]) or (
                # The answer was whole before the cancel came: that is no error of anybody's.
                kinds(by_id[a]) == ["accepted", "chunks", "complete"]
                and order.index(2) > min(order.index(0), order.index(1))
            ), order
            if order.index(2) < min(order.index(0), order.index(1)):
                assert by_id[a] == [], "cancelled before it came, answered nevertheless"
        assert provider.runner.counts().failed == 0
        assert provider.link.state.phase is Phase.REGISTERED


async def test_a_request_without_a_cancel_and_one_cancelled_after_its_end_are_the_same() -> None:
    session = KeyPair.generate()
    async with (
        scripted_coordinator() as coordinator,
        small_provider(coordinator.url, FakeEngine()) as provider,
    ):
        peer = await coordinator.next_peer()
        await peer.accept()
        for name in ("never", "after"):
            await peer.say(request_for(provider.keys.public_text, session, name))
            await peer.expect(InferenceComplete)
            if name == "after":
                await peer.say(Cancel(request_id=name))
        assert await everything_until(peer, "the end") == []
        assert provider.runner.counts().served == len(provider.books.records) == 2
        assert provider.runner.counts().cancelled == 0


async def test_a_request_replayed_on_the_next_connection_is_not_served_again() -> None:
    session, time = KeyPair.generate(), ManualTime()
    async with (
        scripted_coordinator() as coordinator,
        small_provider(
            coordinator.url, FakeEngine(), clock=time.clock, sleep=time.sleep
        ) as provider,
    ):
        first = await coordinator.next_peer()
        await first.accept()
        asked = request_for(provider.keys.public_text, session, "job")
        await first.say(asked)
        await first.expect(InferenceComplete)
        first.connection.transport.abort()
        await provider.until(lambda s: s.phase is Phase.WAITING)
        await time.advance(1)
        second = await coordinator.next_peer()
        await second.accept()
        await second.say(asked)
        error = await second.expect(InferenceError)
        assert (error.request_id, error.status_code) == ("job", 503)
        assert len(provider.books.records) == 1


# ---------------------------------------------------------------- challenges


async def test_stale_foreign_and_replayed_challenges_are_answered_for_what_they_are() -> None:
    """Nonce and time are opaque: each is answered once, as sent, and nothing else follows.

    Whether an answer is good is the coordinator's to say. A provider that judged by its own clock
    would go silent when the clock is wrong.
    """
    challenges = [
        AttestationChallenge(nonce="stale", timestamp="1970-01-01T00:00:00Z"),
        AttestationChallenge(nonce="of tomorrow", timestamp="9999-12-31T23:59:59Z"),
        AttestationChallenge(nonce="", timestamp=""),
        AttestationChallenge(nonce="twice", timestamp="2026-01-02T03:04:05Z"),
        AttestationChallenge(nonce="twice", timestamp="2026-01-02T03:04:05Z"),
        AttestationChallenge(nonce="<&>\u2028 π", timestamp="not a time"),
    ]
    time = ManualTime()
    async with (
        scripted_coordinator() as coordinator,
        small_provider(
            coordinator.url, FakeEngine(), clock=time.clock, sleep=time.sleep
        ) as provider,
    ):
        peer = await coordinator.next_peer()
        for challenge in challenges:
            await peer.say(challenge)
        answers = [await peer.expect(AttestationResponse) for _ in challenges]
        assert [answer.nonce for answer in answers] == [c.nonce for c in challenges]
        await provider.until(lambda s: s.phase is Phase.REGISTERED)
        assert sum(isinstance(m, Register) for m in peer.heard) == 1


async def everything_until(peer: Peer, nonce: str) -> list[ProviderMessage]:
    """What comes before the answer to a challenge that is asked now, heartbeats aside."""
    before = len(peer.heard)
    await peer.accept(nonce)
    return [m for m in peer.heard[before:-1] if not isinstance(m, Heartbeat)]


def sorted_by_request(heard: list[ProviderMessage]) -> dict[str, list[ProviderMessage]]:
    by_id: dict[str, list[ProviderMessage]] = defaultdict(list)
    for message in heard:
        by_id[getattr(message, "request_id", "")].append(message)
    return by_id


def kinds(messages: list[ProviderMessage]) -> list[str]:
    """The messages of one request in short, its chunks as one."""
    names = {
        InferenceAccepted: "accepted",
        InferenceResponseChunk: "chunks",
        InferenceComplete: "complete",
        InferenceError: "error",
    }
    return [name for name, _ in itertools.groupby(names[type(message)] for message in messages)]
