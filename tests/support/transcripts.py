"""Transcripts of sessions: what happened and when, and what the session machine decided then.

One JSON object a line. The first is the head: `{"timings": {...}}`. Each other is one call of
`Session.receive`: `{"t": seconds, "event": [name, fields], "actions": [[name, fields], …]}`.
Messages of the protocol stand in them as on the wire, so prompts and answers are sealed.

`python -m support.transcripts DIRECTORY`, with `tests` on the path, records all of them anew from
sessions with the embedded coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import httpx
from pydantic import BaseModel

from darkbloom_provider.coordinator.settings import Policy, Timing
from darkbloom_provider.link import actions as do
from darkbloom_provider.link import connection, events
from darkbloom_provider.link.session import Session, Timings
from darkbloom_provider.link.state import Phase
from darkbloom_provider.protocol import codec
from support.daemon_parts import FakeEngine
from support.network import CHAT, Network, chat, network
from support.small_provider import SmallProvider, small_provider

TRANSCRIPTS: Final = Path(__file__).parent.parent / "link" / "transcripts"
QUICK: Final = Timings(heartbeat_s=0.25)
"""Recorded sessions last a second or two, so they beat more often."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of a transcript."""

    t: float
    event: events.Event
    actions: list[Any]
    """Written as `written` writes them."""


# ---------------------------------------------------------------- values as JSON


def written(value: Any) -> Any:
    """An event, an action or anything in one as JSON."""
    if isinstance(value, BaseModel):
        return json.loads(codec.encode(value))  # type: ignore[arg-type]  # every message
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: written(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [type(value).__name__, fields]
    if isinstance(value, codec.FrameError):
        return [type(value).__name__, {"what": value.what, "why": value.why}]
    return value


def event_of(document: list[Any]) -> events.Event:
    """The event that `written` wrote."""
    name, fields = document
    kind = getattr(events, name)
    if kind is events.FrameReceived:
        return events.FrameReceived(codec.decode_from_coordinator(json.dumps(fields["message"])))
    if kind is events.FrameUndecodable:
        error = codec.FrameError(fields["error"][1]["what"], why=fields["error"][1]["why"])
        return events.FrameUndecodable(error)
    event: events.Event = kind(**fields)
    return event


def read(path: Path) -> tuple[Timings, list[Step]]:
    """A transcript from its file."""
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [Step(line["t"], event_of(line["event"]), line["actions"]) for line in lines]
    return Timings(**head["timings"]), steps


# ---------------------------------------------------------------- recording


class RecordedSession(Session):
    """A session that writes down what it is told and what it decides."""

    def __init__(self, lines: list[dict[str, Any]], timings: Timings) -> None:
        super().__init__(timings)
        self._lines = lines
        self._lines.append({"timings": dataclasses.asdict(timings)})
        self._began: float | None = None

    def receive(self, event: events.Event, now: float) -> list[do.Action]:
        """As the session does, and note it."""
        if self._began is None:
            self._began = now
        if isinstance(event, events.Drain):
            event = events.Drain(round(event.deadline - self._began, 6))
        now = round(now - self._began, 6)
        actions = super().receive(event, now)
        self._lines.append({"t": now, "event": written(event), "actions": written_all(actions)})
        return actions


def written_all(actions: list[do.Action]) -> list[Any]:
    """Actions as a transcript holds them."""
    return [written(action) for action in actions]


@contextmanager
def recording() -> Iterator[list[list[dict[str, Any]]]]:
    """Each session that begins in the block is written into the list."""
    sessions: list[list[dict[str, Any]]] = []

    def recorded(timings: Timings) -> Session:
        sessions.append([])
        return RecordedSession(sessions[-1], timings)

    with mock.patch.object(connection, "Session", recorded):
        yield sessions


# ---------------------------------------------------------------- the recorded scenes


@dataclasses.dataclass
class Scene:
    """A coordinator, a consumer and a provider whose engine waits before every piece."""

    net: Network
    provider: SmallProvider
    gate: asyncio.Event

    async def streaming(self) -> asyncio.Task[httpx.Response]:
        """A streamed request that the provider works on; its answer ends once the gate opens."""
        before = self.provider.runner.counts().in_flight
        asked = asyncio.create_task(self.net.http.post(CHAT, json=chat(stream=True)))
        await self.net.until(lambda: self.provider.runner.counts().in_flight > before)
        return asked


@asynccontextmanager
async def scene(
    directory: Path, timing: Timing | None = None, policy: Policy | None = None, **register: Any
) -> AsyncIterator[Scene]:
    """Both sides, the provider registered and challenged."""
    gate = asyncio.Event()
    async with network(directory, timing=timing or Timing(), policy=policy) as net:
        engine = FakeEngine("Hel", "lo", gate=gate)
        async with small_provider(net.ws_url, engine, timings=QUICK, **register) as provider:
            await provider.until(lambda state: state.phase is Phase.REGISTERED)
            yield Scene(net, provider, gate)


async def an_answer_then_a_drain(directory: Path) -> None:
    """A streamed answer; then the provider stops."""
    async with scene(directory) as s:
        asked = await s.streaming()
        s.gate.set()
        assert (await asked).text.endswith("data: [DONE]\n\n")
        await s.provider.link.drain(30)


async def a_consumer_who_left(directory: Path) -> None:
    """A consumer hangs up in the middle; the next one is served."""
    async with scene(directory) as s:
        asked = await s.streaming()
        asked.cancel()
        await s.net.until(lambda: s.provider.runner.counts().cancelled == 1)
        s.gate.set()
        await (await s.streaming())
        await s.provider.link.drain(30)


async def registered_again_between_streams(directory: Path) -> None:
    """What is registered changes while two answers run: both are finished first."""
    async with scene(directory) as s:
        asked = [await s.streaming(), await s.streaming()]
        before = set(s.net.coordinator.hub.registry)
        s.provider.link.request_reregister("the models have changed")
        await asyncio.sleep(0.3)
        s.gate.set()
        for one in asked:
            assert (await one).text.endswith("data: [DONE]\n\n")
        await s.net.until(lambda: not before & set(s.net.coordinator.hub.registry))
        await s.net.until(lambda: s.net.verified() == 1)
        await s.provider.link.drain(30)


async def a_stop_that_cannot_wait(directory: Path) -> None:
    """The drain's deadline passes while an answer runs, and another request comes meanwhile."""
    async with scene(directory) as s:
        asked = await s.streaming()
        draining = asyncio.create_task(s.provider.link.drain(1.5))
        late = await s.net.http.post(CHAT, json=chat("late"))
        assert late.status_code == 503
        await draining
        assert "[DONE]" not in (await asked).text


async def a_coordinator_that_stopped(directory: Path) -> None:
    """The coordinator stops in the middle of an answer: it cancels, then hangs up."""
    engine = FakeEngine("Hel", "lo", gate=asyncio.Event())
    async with contextlib.AsyncExitStack() as coordinator:
        net = await coordinator.enter_async_context(network(directory))
        async with small_provider(net.ws_url, engine, timings=QUICK) as provider:
            await provider.until(lambda state: state.phase is Phase.REGISTERED)
            asked = await Scene(net, provider, asyncio.Event()).streaming()
            await coordinator.aclose()
            await provider.until(lambda state: state.phase is Phase.WAITING)
    asked.cancel()
    await asyncio.wait([asked])


async def challenged_again_and_again(directory: Path) -> None:
    """Challenges come while an answer runs and while nothing does."""
    async with scene(directory, timing=Timing(challenge_interval=0.4)) as s:
        asked = await s.streaming()
        await asyncio.sleep(1)
        s.gate.set()
        await asked
        await asyncio.sleep(0.5)
        await s.provider.link.drain(30)


async def a_runtime_that_is_not_listed(directory: Path) -> None:
    """The operator lists hashes, and this provider's is not among them."""
    policy = Policy(accepted_runtime_hashes=frozenset({"good"}))
    async with scene(directory, policy=policy, runtime_hash="bad") as s:
        await s.provider.until(lambda state: state.last_problem is not None)
        await s.provider.link.drain(30)


SCENES: Final[dict[str, Callable[[Path], Any]]] = {
    scene.__name__.replace("_", "-"): scene
    for scene in (
        an_answer_then_a_drain,
        a_consumer_who_left,
        registered_again_between_streams,
        a_stop_that_cannot_wait,
        a_coordinator_that_stopped,
        challenged_again_and_again,
        a_runtime_that_is_not_listed,
    )
}


async def record(name: str, directory: Path) -> list[str]:
    """Play one scene; the lines of its (one) session."""
    with recording() as sessions:
        await SCENES[name](directory)
    return [json.dumps(line, separators=(",", ":")) for line in sessions[0]]


def main() -> None:
    """Record every scene into the directory that is named."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name in SCENES:
        with tempfile.TemporaryDirectory() as directory:
            lines = asyncio.run(record(name, Path(directory)))
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        sys.stdout.write(f"{name}: {len(lines) - 1} events\n")


if __name__ == "__main__":
    main()
