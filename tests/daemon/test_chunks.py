"""What a real engine's chunks hold: one event each, with more text in it when the line is slow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from darkbloom_provider.protocol.messages import InferenceComplete, InferenceResponseChunk
from support.daemon_parts import MODEL
from support.processes import until
from support.served_line import ServedLine, served_line

TOKENS = 400
ASKED = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": TOKENS,
}


def body(**changes: Any) -> bytes:
    return json.dumps(ASKED | changes).encode()


def events(line: ServedLine, request_id: str) -> list[dict[str, Any]]:
    """The chunks as events, each of which must be one and no more."""
    found = []
    for text in line.chunks(request_id):
        assert text.startswith('data: {"')
        assert "\n" not in text
        assert "[DONE]" not in text
        assert '": ' not in text, "compact"
        found.append(json.loads(text.removeprefix("data: ")))
    return found


def said(found: list[dict[str, Any]]) -> str:
    parts = [c.get("delta", c.get("message")) for event in found for c in event["choices"]]
    return "".join(part.get("content", "") for part in parts)


async def test_text_gathers_into_fewer_events_while_the_line_is_slow_and_none_is_lost(
    tiny_model: Path, tmp_path: Path
) -> None:
    async with served_line(tiny_model, tmp_path) as line:
        line.ask("whole", body())
        await line.ended("whole", InferenceComplete)

        line.ask("slow", body(stream=True, stream_options={"include_usage": True}))
        await line.until_sent("slow", InferenceResponseChunk)
        line.socket.open.clear()

        def generated() -> bool:
            slot = line.engine.snapshot().slot(MODEL)
            return slot is not None and slot.running == 0

        await until(generated, "the engine to be done")
        line.socket.open.set()
        await line.ended("slow", InferenceComplete)

        (whole,) = events(line, "whole")
        slow = events(line, "slow")
        assert said(slow) == said([whole])
        assert len(slow) < TOKENS / 4
        assert [bool(event["choices"]) for event in slow] == [True] * (len(slow) - 1) + [False]
        assert slow[-1]["usage"] == whole["usage"]
        assert slow[-1]["usage"]["completion_tokens"] == TOKENS
        running = [
            message.usage.completion_tokens
            for message in line.socket.sent
            if isinstance(message, InferenceResponseChunk)
            and message.request_id == "slow"
            and message.usage is not None
        ]
        assert running == sorted(running)
        (complete,) = (
            message
            for message in line.socket.sent
            if isinstance(message, InferenceComplete) and message.request_id == "slow"
        )
        assert complete.usage.completion_tokens == running[-1] == TOKENS
