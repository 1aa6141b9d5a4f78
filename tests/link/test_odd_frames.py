"""Frames that hypothesis makes, for the codec, the session and a whole connection.

Whatever a coordinator sends, what comes out is a message or a typed error, what follows from it is
a decision of the session, and the connection ends because the other side hung up, never by a fault.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkbloom_provider.link.connection import Connection
from darkbloom_provider.link.failure import Failure, SocketClosed
from darkbloom_provider.link.session import Timings
from darkbloom_provider.link.socket import SocketLimits
from darkbloom_provider.protocol import codec
from support.link_rig import Facts, Jobs
from support.manual_time import ManualTime, settle
from support.piped_socket import PipedSocket
from support.recordings import recording

GOLDEN = [json.loads(line["wire"]) for line in recording("messages")]
FRAMES = 20
"""In one session."""

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(2**63)
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=2),
    st.dictionaries(st.text(max_size=4), scalars, max_size=2),
)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A golden message with a change or two, as its text; sometimes with its bytes damaged."""
    document = copy.deepcopy(draw(st.sampled_from(GOLDEN)))
    for _ in range(draw(st.integers(0, 2))):
        inner: Any = document
        while True:
            key = draw(
                st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner)))
            )
            if not isinstance(inner[key], dict | list) or not inner[key] or draw(st.booleans()):
                break
            inner = inner[key]
        if draw(st.booleans()):
            inner[key] = draw(values)
        else:
            del inner[key]
        if not document:
            break
    text = json.dumps(document).encode()
    if draw(st.integers(0, 4)):
        return text
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 3)) :]


def outcome(frame: bytes) -> str:
    """What the codec makes of a frame."""
    try:
        return codec.decode_from_coordinator(frame).type
    except codec.FrameError as error:
        return type(error).__name__


sessions = st.lists(frames(), min_size=FRAMES, max_size=FRAMES)


@settings(max_examples=1_000 // FRAMES)
@given(sessions)
def test_no_frame_of_a_coordinator_ends_the_session_or_goes_unanswered(odd: list[bytes]) -> None:
    hear(odd)


@pytest.mark.chaos
@settings(max_examples=10_000 // FRAMES)
@given(sessions)
def test_no_frame_of_ten_thousand_ends_the_session_or_goes_unanswered(odd: list[bytes]) -> None:
    hear(odd)


def hear(odd: list[bytes]) -> None:
    """Let a connection hear these frames, and hold it to what follows from each."""
    outcomes = Counter(outcome(frame) for frame in odd)
    socket, jobs, time = PipedSocket(), Jobs(), ManualTime()

    async def hold() -> Failure | None:
        connection = Connection(
            socket,  # type: ignore[arg-type]  # what a connection needs of a socket
            facts=Facts(),
            jobs=jobs,
            clock=time.clock,
            sleep=time.sleep,
            timings=Timings(),
            limits=SocketLimits(),
            changed=lambda: None,
        )
        holding = asyncio.create_task(connection.hold())
        for frame in odd:
            socket.say(frame)
        await settle()
        socket.hang_up()
        return await holding

    assert asyncio.run(hold()) == SocketClosed(1000)
    sent = Counter(message.type for message in socket.sent)
    assert sent["register"] == 1
    assert sent["attestation_response"] == outcomes["attestation_challenge"]
    assert jobs.started.qsize() <= outcomes["inference_request"]
