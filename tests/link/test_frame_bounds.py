"""The largest frames of both directions, over a real socket: at the bound, and one byte above."""

from __future__ import annotations

import pytest

from darkbloom_provider.link.outbox import ReplyClosedError
from darkbloom_provider.link.reply import FrameOverLimitError
from darkbloom_provider.link.state import Phase
from darkbloom_provider.protocol.codec import MAX_COORDINATOR_FRAME, MAX_PROVIDER_FRAME, encode
from darkbloom_provider.protocol.messages import (
    EncryptedPayload,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    Usage,
)
from support.link_rig import Start, a_job, registered
from support.scripted_coordinator import ScriptedCoordinator

USAGE = Usage(prompt_tokens=1, completion_tokens=1)


def box(characters: int) -> EncryptedPayload:
    return EncryptedPayload(ephemeral_public_key="key", ciphertext="A" * characters)


def request_of(size: int) -> str:
    """An `inference_request` frame of so many bytes."""
    empty = encode(InferenceRequest(request_id="large", encrypted_body=box(0)))
    return encode(InferenceRequest(request_id="large", encrypted_body=box(size - len(empty))))


def payload_for(size: int) -> EncryptedPayload:
    """What makes a chunk frame of so many bytes."""
    empty = InferenceResponseChunk(request_id="job", encrypted_data=box(0), usage=USAGE)
    return box(size - len(encode(empty)))


async def test_a_request_of_64_mib_is_taken(start: Start, coordinator: ScriptedCoordinator) -> None:
    rig, peer = await registered(start, coordinator)
    frame = request_of(MAX_COORDINATOR_FRAME)
    assert len(frame.encode()) == 64 * 1024 * 1024
    await peer.connection.send(frame)
    assert (await rig.jobs.started.get()).request_id == "large"
    await peer.accept("still here")


async def test_a_request_of_one_byte_more_costs_the_connection_and_says_so(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    await peer.connection.send(request_of(MAX_COORDINATOR_FRAME + 1))
    state = await rig.phase(Phase.WAITING)
    assert state.last_problem is not None
    assert "size limit" in state.last_problem.what
    assert rig.jobs.started.empty()
    await rig.time.advance(30)
    await (await coordinator.next_peer()).accept()


async def test_a_chunk_of_10_mib_is_sent(start: Start, coordinator: ScriptedCoordinator) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    await reply.chunk(payload_for(MAX_PROVIDER_FRAME), USAGE)
    chunk = await peer.expect(InferenceResponseChunk)
    assert len(encode(chunk).encode()) == 10 * 1024 * 1024
    await reply.complete(USAGE)
    await peer.expect(InferenceComplete)


async def test_a_chunk_of_one_byte_more_ends_its_job_with_500_and_nothing_else(
    start: Start, coordinator: ScriptedCoordinator
) -> None:
    rig, peer = await registered(start, coordinator)
    reply = await a_job(rig, peer)
    await reply.accepted()
    with pytest.raises(FrameOverLimitError):
        await reply.chunk(payload_for(MAX_PROVIDER_FRAME + 1), USAGE)
    assert (await peer.expect(InferenceError)).status_code == 500
    with pytest.raises((ReplyClosedError, RuntimeError)):
        await reply.complete(USAGE)
    await peer.accept("still here")
    assert not any(isinstance(m, InferenceResponseChunk) for m in peer.heard)
