"""The link against a coordinator that is rude, broken, overloaded or gone."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from darkbloom_provider.link.failure import REPLACED_REASON
from darkbloom_provider.link.outbox import CONTROL_LIMIT, ReplyClosedError
from darkbloom_provider.link.reconnect import REFUSED_S, REPLACED_S
from darkbloom_provider.link.reply import Reply
from darkbloom_provider.link.state import LinkState, Phase
from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    EncryptedPayload,
    Heartbeat,
    InferenceError,
    Register,
    Usage,
)
from support.link_rig import Start, a_job, registered
from support.manual_time import settle
from support.scripted_coordinator import ScriptedCoordinator, scripted_coordinator

USAGE = Usage(prompt_tokens=17, completion_tokens=42)


def waited(state: LinkState) -> float:
    """Seconds between the end of the attempt and the next one."""
    assert state.retry_at is not None
    return state.retry_at - state.since


async def stream(reply: Reply) -> None:
    """A job that never stops talking: large chunks, so that a line fills up quickly."""
    large = EncryptedPayload(ephemeral_public_key="key", ciphertext="x" * 5_000_000)
    while True:
        await reply.chunk(large, USAGE)


def answering(coordinator: ScriptedCoordinator, status: int, **headers: str) -> None:
    """Make the coordinator answer upgrades with an HTML page of this status."""

    def respond(connection: ServerConnection, _: Request) -> Response:
        response = connection.respond(HTTPStatus(status), "<html>sorry</html>")
        response.headers["Content-Type"] = "text/html"
        for name, value in headers.items():
            response.headers[name.replace("_", "-")] = value
        return response

    coordinator.respond = respond


@pytest.mark.parametrize(("status", "command"), [(401, "login"), (403, "login"), (426, "update")])
async def test_a_rejection_for_the_owner_says_so_and_waits(
    start: Start, coordinator: ScriptedCoordinator, status: int, command: str
) -> None:
    answering(coordinator, status)
    rig = start(coordinator.url)
    state = await rig.phase(Phase.REFUSED)
    assert waited(state) == REFUSED_S
    assert state.last_problem is not None
    assert command in state.last_problem.next_step
    await rig.time.advance(REFUSED_S - 1)
    assert len(coordinator.requests) == 1


async def test_after_the_owner_acts_it_dials_at_once(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    answering(coordinator, 401)
    rig = start(coordinator.url)
    await rig.phase(Phase.REFUSED)
    coordinator.respond = None
    rig.link.request_reregister("logged in")
    peer = await coordinator.next_peer()
    await peer.accept()
    state = await rig.phase(Phase.REGISTERED)
    assert state.last_problem is None


@pytest.mark.parametrize("status", [200, 404, 500, 502, 503])
async def test_other_answers_than_a_websocket_are_retried(
    start: Start, coordinator: ScriptedCoordinator, status: int
) -> None:
    answering(coordinator, status)
    rig = start(coordinator.url)
    state = await rig.phase(Phase.WAITING)
    assert waited(state) == 0.5
    coordinator.respond = None
    await rig.time.advance(0.5)
    await coordinator.next_peer()


async def test_too_many_requests_are_answered_with_patience(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    answering(coordinator, 429, Retry_After="17")
    rig = start(coordinator.url)
    assert waited(await rig.phase(Phase.WAITING)) == 17


async def test_a_redirect_is_not_followed_and_no_token_leaves(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    async with scripted_coordinator() as elsewhere:
        answering(coordinator, 302, Location=elsewhere.url)
        rig = start(coordinator.url)
        state = await rig.phase(Phase.WAITING)
        assert state.last_problem is not None
        assert "redirects" in state.last_problem.what
        assert elsewhere.requests == []
        assert len(coordinator.requests) == 1


async def test_a_refused_connection_is_retried_with_growing_delays(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    url = coordinator.url
    assert coordinator.server is not None
    coordinator.server.close()
    await coordinator.server.wait_closed()
    rig = start(url)
    delays = []
    for attempt in range(1, 8):
        state = await rig.failed(attempt)
        delays.append(waited(state))
        await rig.time.advance(delays[-1])
    assert delays == [0.5, 1, 2, 4, 8, 15, 15]


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 101 Swi"])
async def test_what_is_no_coordinator_is_retried(start: Start, greeting: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(greeting)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        rig = start(f"ws://127.0.0.1:{port}/ws/provider")
        state = await rig.phase(Phase.WAITING)
        assert state.last_problem is not None


async def test_a_server_that_never_answers_the_upgrade_is_given_up(start: Start) -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(stall, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        rig = start(f"ws://127.0.0.1:{port}/ws/provider", open_timeout_s=0.05)
        state = await rig.phase(Phase.WAITING)
        assert state.last_problem is not None
        assert "in time" in state.last_problem.what


async def test_a_name_that_does_not_exist_is_retried(start: Start) -> None:
    rig = start("ws://no-such-host.invalid/ws/provider")
    await rig.phase(Phase.WAITING)


async def test_a_silent_coordinator_is_left_after_15_seconds(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    peer = await coordinator.next_peer()
    await peer.expect(Heartbeat)
    await rig.time.advance(15)
    state = await rig.phase(Phase.WAITING)
    assert state.last_problem is not None
    assert "did not accept" in state.last_problem.what
    assert await peer.hear_to_the_end() == 1000


async def test_a_machine_that_slept_registers_on_a_new_connection(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    rig.time.now += 3600
    await rig.time.advance(1)
    state = await rig.phase(Phase.WAITING)
    assert state.attempts == 1
    assert await peer.hear_to_the_end() == 1000
    await rig.time.advance(1)
    await (await coordinator.next_peer()).expect(Register)


@pytest.mark.parametrize("jump", [3600.0, 86_400.0])
async def test_a_clock_set_back_keeps_the_connection_and_its_heartbeats(
    start: Start, coordinator: ScriptedCoordinator, jump: float
) -> None:
    rig, peer = await registered(start, coordinator)
    await rig.time.advance(1)
    rig.skew -= jump
    for _ in range(12):
        await rig.time.advance(5)
        await peer.accept("still here")
    beats = sum(isinstance(message, Heartbeat) for message in peer.heard)
    assert beats >= 12
    assert sum(isinstance(message, Register) for message in peer.heard) == 1
    assert rig.link.state.phase is Phase.REGISTERED
    # What follows is timed as ever: a loss is retried after the policy's delay.
    peer.connection.transport.abort()
    assert waited(await rig.phase(Phase.WAITING)) <= 1


@pytest.mark.parametrize("jump", [3600.0, 86_400.0])
async def test_a_clock_set_ahead_costs_one_connection_and_registers_once_more(
    start: Start, coordinator: ScriptedCoordinator, jump: float
) -> None:
    rig, peer = await registered(start, coordinator)
    rig.skew += jump
    await rig.time.advance(1)
    await rig.phase(Phase.WAITING)
    assert await peer.hear_to_the_end() == 1000
    await rig.time.advance(1)
    again = await coordinator.next_peer()
    await again.accept()
    await rig.phase(Phase.REGISTERED)
    await rig.time.advance(60)
    assert rig.link.state.phase is Phase.REGISTERED
    assert sum(isinstance(message, Register) for message in again.heard) == 1
    assert len(coordinator.requests) == 2


async def test_another_provider_on_the_machine_is_explained_and_not_fought(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    await peer.connection.close(1000, REPLACED_REASON)
    state = await rig.phase(Phase.REFUSED)
    assert waited(state) == REPLACED_S
    assert state.registered_at is None


async def test_an_ordinary_goodbye_is_a_loss_too(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    await peer.connection.close(1000, "goodbye")
    await rig.phase(Phase.WAITING)
    await rig.time.advance(1)
    await coordinator.next_peer()


@pytest.mark.parametrize("polite", [True, False])
async def test_a_coordinator_lost_in_mid_stream_aborts_the_jobs_once(
    start: Start, coordinator: ScriptedCoordinator, *, polite: bool
) -> None:
    rig, peer = await registered(start, coordinator)
    replies = [await a_job(rig, peer, name) for name in ("a", "b")]
    for reply in replies:
        await reply.accepted()
    if polite:
        await peer.connection.close(1001)
    else:
        peer.connection.transport.abort()
    await rig.phase(Phase.WAITING)
    assert len(rig.jobs.aborted) == 1
    for reply in replies:
        with pytest.raises(ReplyClosedError):
            await reply.complete(USAGE)


async def test_a_job_that_waits_for_room_is_woken_by_the_loss(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    streaming = asyncio.create_task(stream(reply))
    while not rig.link.depth.job_characters:
        await settle()
    peer.connection.transport.abort()
    with pytest.raises(ReplyClosedError):
        await streaming


async def test_a_coordinator_that_stops_reading_does_not_hold_up_the_end(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    peer.connection.transport.pause_reading()
    streaming = asyncio.create_task(stream(reply))
    while not rig.link.depth.job_characters:
        await settle()
    draining = asyncio.create_task(rig.link.drain(10))
    await rig.phase(Phase.DRAINING)
    await rig.time.advance(11)
    async with asyncio.timeout(5):
        await draining
    with pytest.raises(ReplyClosedError):
        await streaming


async def test_the_last_words_are_sent_before_hanging_up(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url, close_timeout_s=20.0)
    peer = await coordinator.next_peer()
    await peer.accept()
    reply = await a_job(rig, peer)
    await reply.accepted()
    peer.connection.transport.pause_reading()
    streaming = asyncio.create_task(stream(reply))
    while not rig.link.depth.job_characters:
        await settle()
    draining = asyncio.create_task(rig.link.drain(10))
    await rig.phase(Phase.DRAINING)
    await rig.time.advance(11)
    peer.connection.transport.resume_reading()
    assert await peer.hear_to_the_end() == 1000
    assert isinstance(peer.heard[-1], InferenceError)
    await draining
    with pytest.raises(ReplyClosedError):
        await streaming


async def test_a_coordinator_that_asks_without_reading_is_left(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    peer.connection.transport.pause_reading()
    streaming = asyncio.create_task(stream(reply))
    while not rig.link.depth.job_characters:
        await settle()
    for number in range(CONTROL_LIMIT + 2):
        await peer.say(AttestationChallenge(nonce=f"nonce {number}"))
    state = await rig.phase(Phase.WAITING)
    assert state.last_problem is not None
    assert "stopped reading" in state.last_problem.what
    with pytest.raises(ReplyClosedError):
        await streaming


async def test_a_proxy_of_the_environment_is_not_used(
    start: Start, coordinator: ScriptedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    start(coordinator.url)
    await coordinator.next_peer()


async def test_the_token_is_in_no_log(
    start: Start,
    coordinator: ScriptedCoordinator,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    rig, peer = await registered(start, coordinator)
    token = next(m for m in peer.heard if isinstance(m, Register)).auth_token
    assert token is not None
    peer.connection.transport.abort()
    await rig.phase(Phase.WAITING)
    # The server of this test logs what it hears; only the provider's side counts.
    ours = [record for record in caplog.records if record.name != "websockets.server"]
    assert not [record for record in ours if record.name.startswith("websockets")]
    assert token not in "".join(r.getMessage() for r in ours) + capsys.readouterr().out


async def test_an_answer_over_the_limit_ends_its_job_and_not_the_connection(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    huge = EncryptedPayload(ephemeral_public_key="key", ciphertext="x" * MAX_PROVIDER_FRAME)
    with pytest.raises(ReplyClosedError):
        await reply.chunk(huge, USAGE)
    assert (await peer.expect(InferenceError)).status_code == 500
    await peer.accept("still here")


async def test_a_message_over_the_limit_costs_the_connection_only(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url, max_message=1000)
    peer = await coordinator.next_peer()
    await peer.accept()
    await peer.connection.send("x" * 1001)
    state = await rig.phase(Phase.WAITING)
    assert state.last_problem is not None
    assert "size limit" in state.last_problem.what


async def test_unanswered_pings_mean_a_dead_line(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url, ping_interval_s=0.02, ping_timeout_s=0.05)
    peer = await coordinator.next_peer()
    await peer.accept()
    peer.connection.transport.pause_reading()
    state = await rig.phase(Phase.WAITING)
    assert state.last_problem is not None
    assert "dead" in state.last_problem.what


async def test_a_fault_of_ours_is_owned_up_to_and_retried(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    rig.facts.fault = KeyError("hardware")
    state = await rig.phase(Phase.WAITING)
    assert state.last_problem is not None
    assert state.last_problem.why == "KeyError"
    rig.facts.fault = None
    await rig.time.advance(1)
    await coordinator.next_peer()
    peer = await coordinator.next_peer()
    await peer.expect(Register)


async def test_a_fault_while_registering_again_is_not_the_callers(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, _ = await registered(start, coordinator)
    rig.facts.fault = KeyError("hardware")
    rig.link.request_reregister()
    await rig.phase(Phase.WAITING)


async def test_each_of_many_flapping_connections_registers_exactly_once(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    for attempt in range(1, 41):
        peer = await coordinator.next_peer()
        await peer.expect(Heartbeat)
        if attempt % 2:
            await peer.accept()
        peer.connection.transport.abort()
        state = await rig.failed(attempt)
        assert waited(state) == min(30, 2 ** (attempt - 1)) / 2
        assert sum(isinstance(message, Register) for message in peer.heard) == 1
        await rig.time.advance(waited(state))


async def test_the_backoff_starts_over_after_a_steady_connection(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig = start(coordinator.url)
    for attempt in (1, 2, 3):
        peer = await coordinator.next_peer()
        peer.connection.transport.abort()
        state = await rig.failed(attempt)
        await rig.time.advance(waited(state))
    peer = await coordinator.next_peer()
    await peer.accept()
    await rig.phase(Phase.REGISTERED)
    await rig.time.advance(31)
    peer.connection.transport.abort()
    state = await rig.phase(Phase.WAITING)
    assert (state.attempts, waited(state)) == (1, 0.5)


async def test_a_drain_ends_the_waiting(start: Start, coordinator: ScriptedCoordinator) -> None:
    answering(coordinator, 503)
    rig = start(coordinator.url)
    await rig.phase(Phase.WAITING)
    await rig.link.drain(30)
    await rig.run
    assert rig.link.state.phase is Phase.CLOSED


async def test_a_connection_lost_while_draining_is_not_dialled_again(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    await a_job(rig, peer)
    draining = asyncio.create_task(rig.link.drain(30))
    await rig.phase(Phase.DRAINING)
    peer.connection.transport.abort()
    await draining
    assert len(rig.jobs.aborted) == 1
    assert len(coordinator.requests) == 1
