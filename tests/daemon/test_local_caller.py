"""The caller's end by itself."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from darkbloom_provider.daemon.local_caller import Caller, CallerLeftError


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nothing comes")


async def test_a_caller_that_stops_reading_is_given_up_and_not_waited_for_ever() -> None:
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    caller = Caller(never, send, "chat", "id", patience_s=0.01)
    with pytest.raises(CallerLeftError):
        await caller.write(b"data: {}", last=False)
    assert sent == ["http.response.start", "http.response.body"]
