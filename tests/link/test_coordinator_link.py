"""The link against a real websocket server on loopback: a session's good days."""

from __future__ import annotations

import asyncio

import pytest

from darkbloom_provider import __version__
from darkbloom_provider.link.outbox import ReplyClosedError
from darkbloom_provider.link.state import Phase
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Cancel,
    EncryptedPayload,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    ModelInfo,
    Register,
    RuntimeMismatch,
    RuntimeStatus,
    Usage,
)
from support.link_rig import ATTESTATION, Start, a_job, registered
from support.manual_time import settle
from support.scripted_coordinator import ScriptedCoordinator

PIECE = EncryptedPayload(ephemeral_public_key="key", ciphertext="box")
USAGE = Usage(prompt_tokens=17, completion_tokens=42)


async def test_it_registers_first_and_beats_at_once(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    start(coordinator.url)
    peer = await coordinator.next_peer()
    assert isinstance(await peer.hear(), Register)
    assert isinstance(await peer.hear(), Heartbeat)


async def test_it_names_itself_and_offers_no_compression(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    start(coordinator.url)
    await coordinator.next_peer()
    headers = coordinator.requests[0].headers
    assert headers["User-Agent"] == f"darkbloom-provider/{__version__}"
    assert "Sec-WebSocket-Extensions" not in headers
    assert "Authorization" not in headers


async def test_the_attestation_travels_as_it_was_signed(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    rig.facts.attestation = ATTESTATION
    peer = await coordinator.next_peer()
    assert (await peer.expect(Register)).attestation == ATTESTATION


async def test_a_challenge_is_answered_and_means_registered(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    peer = await coordinator.next_peer()
    assert (await peer.accept("first nonce")).nonce == "first nonce"
    state = await rig.phase(Phase.REGISTERED)
    assert state.registered_at == rig.time.now
    assert state.last_problem is None


async def test_it_beats_every_five_seconds(start: Start, coordinator: ScriptedCoordinator) -> None:
    rig, peer = await registered(start, coordinator)
    for _ in range(3):
        await rig.time.advance(5)
        await peer.expect(Heartbeat)


async def test_a_job_goes_out_in_order(start: Start, coordinator: ScriptedCoordinator) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    await reply.chunk(PIECE, USAGE)
    await reply.complete(USAGE)
    kinds = [type(await peer.hear()) for _ in range(3)]
    assert kinds == [InferenceAccepted, InferenceResponseChunk, InferenceComplete]
    assert rig.link.depth.jobs == 0


async def test_a_cancelled_job_sends_nothing_more(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    await peer.expect(InferenceAccepted)
    await peer.say(Cancel(request_id="job"))
    await peer.accept("after the cancel")
    assert rig.jobs.cancelled == ["job"]
    with pytest.raises(ReplyClosedError):
        await reply.chunk(PIECE, USAGE)
    await rig.stop()
    await peer.hear_to_the_end()
    assert not any(isinstance(m, InferenceResponseChunk | InferenceError) for m in peer.heard)


async def test_the_cancel_that_follows_every_finished_job_is_quiet(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    await reply.complete(USAGE)
    await peer.expect(InferenceComplete)
    await peer.say(Cancel(request_id="job"))
    await peer.accept("still here")
    assert rig.jobs.cancelled == []


async def test_a_challenge_is_answered_while_a_job_waits_for_a_slow_line(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    large = EncryptedPayload(ephemeral_public_key="key", ciphertext="x" * 1_000_000)
    chunks = 30

    async def stream() -> None:
        for _ in range(chunks):
            await reply.chunk(large, USAGE)

    streaming = asyncio.create_task(stream())
    await peer.say(AttestationChallenge(nonce="while busy", timestamp=""))
    await settle()
    assert rig.link.depth.job_characters <= 2_000_200, "a slow line must not fill memory"
    await peer.expect(AttestationResponse)
    heard_before = sum(isinstance(m, InferenceResponseChunk) for m in peer.heard)
    for _ in range(chunks - heard_before):
        await peer.expect(InferenceResponseChunk)
    await streaming
    assert heard_before < chunks, "the answer waited behind the whole stream"


async def test_odd_frames_do_not_cost_the_connection(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    for frame in (
        "not JSON",
        "[]",
        "",
        '{"type":"load_model"}',
        '{"type":"cancel","request_id":7}',
        '{"type":"inference_request"}',
        b'{"type":"cancel","request_id":"binary is fine"}',
    ):
        await peer.connection.send(frame)
    await peer.connection.send(b"\xff\xfe broken UTF-8", text=True)
    await peer.accept("still here")
    assert rig.link.state.phase is Phase.REGISTERED


async def test_one_request_that_cannot_be_started_fails_alone(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    good = await a_job(rig, peer, "good")
    rig.jobs.fault = RuntimeError("no")
    await peer.say(InferenceRequest(request_id="bad"))
    refusal = await peer.expect(InferenceError)
    assert (refusal.request_id, refusal.status_code) == ("bad", 500)
    await good.accepted()
    await good.complete(USAGE)
    await peer.expect(InferenceComplete)


async def test_a_runtime_mismatch_is_shown_until_it_is_over(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    peer = await coordinator.next_peer()
    mismatch = RuntimeMismatch(component="template:chatml", expected="aa", got="bb")
    await peer.say(RuntimeStatus(verified=False, mismatches=(mismatch,)))
    await peer.accept("one")
    state = await rig.phase(Phase.REGISTERED)
    assert state.last_problem is not None
    assert state.last_problem.why == "not listed: template:chatml"
    await peer.accept("two")
    await rig.until(lambda state: state.last_problem is None)


async def test_changed_facts_register_again_on_the_same_socket(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    rig.facts.models = (ModelInfo(id="model"), ModelInfo(id="another"))
    rig.link.request_reregister("models changed")
    again = await peer.expect(Register)
    assert [model.id for model in again.models] == ["model", "another"]
    await peer.accept("again")
    assert len(coordinator.requests) == 1


# ---------------------------------------------------------------- draining


async def test_a_drain_finishes_what_runs_and_hangs_up_politely(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    draining = asyncio.create_task(rig.link.drain(30))
    await rig.phase(Phase.DRAINING)
    await peer.say(InferenceRequest(request_id="late"))
    refusal = await peer.expect(InferenceError)
    assert (refusal.request_id, refusal.status_code) == ("late", 503)
    await reply.chunk(PIECE, USAGE)
    await reply.complete(USAGE)
    assert await peer.hear_to_the_end() == 1000
    assert isinstance(peer.heard[-1], InferenceComplete)
    await draining
    await rig.run
    assert rig.link.state.phase is Phase.CLOSED
    assert rig.jobs.aborted == []


async def test_at_the_drain_deadline_what_runs_ends_with_an_error(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    draining = asyncio.create_task(rig.link.drain(30))
    await rig.phase(Phase.DRAINING)
    await rig.time.advance(31)
    assert await peer.hear_to_the_end() == 1000
    last = peer.heard[-1]
    assert isinstance(last, InferenceError)
    assert (last.request_id, last.status_code) == ("job", 503)
    await draining
    assert len(rig.jobs.aborted) == 1
    with pytest.raises(ReplyClosedError):
        await reply.complete(USAGE)


async def test_a_second_drain_may_shorten_the_deadline(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    await a_job(rig, peer)
    first = asyncio.create_task(rig.link.drain(3600))
    await rig.phase(Phase.DRAINING)
    second = asyncio.create_task(rig.link.drain(0))
    await rig.time.advance(1)
    await asyncio.gather(first, second)


async def test_a_drain_of_a_link_that_never_ran_returns_at_once(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    await rig.link.drain(30)
    await rig.run
    assert coordinator.requests == []


async def test_a_drain_does_not_wait_for_a_dial(start: Start) -> None:
    async with asyncio.timeout(5):
        silent = await asyncio.start_server(_hold_silently, "127.0.0.1", 0)
        async with silent:
            port = silent.sockets[0].getsockname()[1]
            rig = start(f"ws://127.0.0.1:{port}/ws/provider", open_timeout_s=60.0)
            await rig.phase(Phase.CONNECTING)
            await rig.link.drain(30)
            await rig.run


async def _hold_silently(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)
    writer.close()


async def test_a_cancelled_link_hangs_up_and_tells_its_jobs(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    await a_job(rig, peer)
    await rig.stop()
    assert await peer.hear_to_the_end() == 1000
    assert len(rig.jobs.aborted) == 1
    assert rig.link.state.phase is Phase.CLOSED
