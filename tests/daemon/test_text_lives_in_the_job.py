"""A prompt and its completion live in the job that serves them, and are gone when it is over.

With a real engine, job runner and connection; every object of this process that the garbage
collector knows is searched.
"""

from __future__ import annotations

import gc
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

import pytest

from darkbloom_provider import logs
from darkbloom_provider.daemon import answers, jobs
from darkbloom_provider.engine.requests import Delta, GenerationRequest
from darkbloom_provider.protocol.messages import (
    Cancel,
    InferenceComplete,
    InferenceError,
    InferenceResponseChunk,
)
from darkbloom_provider.protocol.requests.request import TextRequest
from support.daemon_parts import MODEL
from support.processes import until
from support.served_line import served_line

OF_A_JOB = (jobs._Job, answers.Answering, TextRequest, GenerationRequest, Delta)
"""What carries text while a request is served."""


def canary() -> str:
    """A text that is written nowhere, not even here."""
    return "-".join(["zebrafinch", "marzipan", str(4700 + 11)])


def body(**changes: Any) -> bytes:
    content = " ".join([canary()] * 3)
    request = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0}
    return json.dumps(request | changes).encode()


def holders(text: str) -> list[str]:
    """What of this process still holds `text`, apart from the test that asks."""
    gc.collect()
    found = []
    for holder in gc.get_objects():  # no comprehension: its cell would hold the text
        if not of_this_test(holder) and holds(holder, text):
            found.append(f"{type(holder)}: {str(holder)[:300]}")  # noqa: PERF401 — see above
    return found


def holds(holder: object, text: str) -> bool:
    for inner in gc.get_referents(holder):
        if isinstance(inner, str):
            if text in inner:
                return True
        elif isinstance(inner, bytes | bytearray):
            if text.encode() in inner:
                return True
        # Plain containers of plain values are not in the collector's list.
        elif not gc.is_tracked(inner) and holds(inner, text):
            return True
    return False


def of_this_test(holder: object) -> bool:
    return isinstance(holder, FrameType) or (
        isinstance(holder, CoroutineType) and holder.cr_code.co_filename == __file__
    )


def of_jobs() -> list[object]:
    """What of any job is in memory."""
    gc.collect()
    return [held for held in gc.get_objects() if isinstance(held, OF_A_JOB)]


def alive(others: list[object]) -> list[str]:
    """What of the jobs is still in memory, apart from what other tests have made."""
    known = set(map(id, others))
    return [type(held).__name__ for held in of_jobs() if id(held) not in known]


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    """All that is logged at debug level, by us and by every library."""
    seen = io.StringIO()
    logs.configure(stream=seen, verbose=True)
    handler = logging.StreamHandler(seen)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield seen
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        logs.configure()


async def test_nothing_of_a_request_is_left_in_memory_log_or_journal_when_it_is_over(
    tiny_model: Path, tmp_path: Path, everything_logged: io.StringIO
) -> None:
    others = of_jobs()
    async with served_line(tiny_model, tmp_path) as d:
        d.ask("whole", body(max_tokens=40))
        await d.ended("whole", InferenceComplete)
        d.ask("streamed", body(max_tokens=40, stream=True))
        await d.ended("streamed", InferenceComplete)
        d.ask("refused", body(max_tokens=40, tools=[{"type": canary()}]))
        await d.ended("refused", InferenceError)
        d.ask("cancelled", body(max_tokens=900, stream=True))
        await d.until_sent("cancelled", InferenceResponseChunk)
        assert "_Job" in alive(others)
        assert holders(canary()), "the search finds nothing where there is something"
        d.socket.say(Cancel(request_id="cancelled"))
        await d.idle()
        d.ask("lost", body(max_tokens=900, stream=True))
        await d.until_sent("lost", InferenceResponseChunk)
        d.socket.hang_up()
        await d.idle()
        await until(lambda: not alive(others), "the engine to let go, within two of its steps")
        assert holders(canary()) == []
        completion = longest_text(d.chunks())
        assert holders(completion) == []
    logged = everything_logged.getvalue()
    assert "room=daemon.jobs" in logged
    journal = (tmp_path / "journal.sqlite3").read_bytes()
    for text in (canary(), completion):
        assert text not in logged
        assert text.encode() not in journal


def longest_text(events: list[str]) -> str:
    """The longest piece of a completion."""
    texts: list[str] = []
    for event in events:
        choices = json.loads(event.removeprefix("data: "))["choices"]
        texts += [(c.get("delta") or c.get("message") or {}).get("content") or "" for c in choices]
    text = max(texts, key=len)
    assert len(text) >= 20, "too short to be told from other text"
    return text
