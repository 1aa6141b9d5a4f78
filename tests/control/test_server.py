from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from darkbloom_provider import __version__
from darkbloom_provider.control.client import DaemonClient
from darkbloom_provider.control.models import (
    HOST,
    RELOAD_ACCOUNT_PATH,
    VERSION_HEADER,
    AccountReload,
    AccountStatus,
    CoordinatorStatus,
    DrainReply,
    JobCounts,
    JournalStatus,
    ModelsReload,
    PostureStatus,
    StatusReport,
)
from darkbloom_provider.control.server import application, serving
from darkbloom_provider.errors import AlreadyRunningError, DarkbloomError, UnreachableError

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
T = TypeVar("T")


class FakeDaemon:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.drained: list[float] = []

    def status(self) -> StatusReport:
        return StatusReport(
            version=__version__,
            pid=7,
            phase="serving",
            now=NOW,
            started_at=NOW - dt.timedelta(minutes=5),
            coordinator=CoordinatorStatus(url="ws://127.0.0.1:1/ws/provider", phase="registered"),
            account=AccountStatus(linked=False, wallet_address="0x1"),
            models=(),
            jobs=JobCounts(in_flight=1),
            journal=JournalStatus(),
            posture=PostureStatus(kind="measured"),
        )

    def drain(self, deadline_s: float) -> DrainReply:
        self.drained.append(deadline_s)
        return DrainReply(pid=7, in_flight=1)

    async def reload_account(self) -> AccountReload:
        return AccountReload(coordinator="ws://127.0.0.1:1/ws/provider", linked=True, changed=True)

    async def reload_models(self) -> ModelsReload:
        raise DarkbloomError("The provider is draining", next_step="wait")


async def on_thread(call: Callable[[], T]) -> T:
    return await asyncio.to_thread(call)


def raw(daemon: FakeDaemon, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(application(daemon, version="9.9")),
        base_url=f"http://{HOST}",
        headers=headers,
    )


async def test_client_and_server_agree_over_the_real_socket(short_home: Path) -> None:
    daemon, path = FakeDaemon(), short_home / "run" / "daemon.sock"
    async with serving(daemon, path):
        client = DaemonClient(path)
        assert await on_thread(client.status) == daemon.status()
        assert client.skew is None
        assert (await on_thread(lambda: client.drain(5))).pid == 7
    assert daemon.drained == [5]
    assert not path.exists()


async def test_reloads_are_answered_or_refused_with_what_to_do(short_home: Path) -> None:
    daemon, path = FakeDaemon(), short_home / "daemon.sock"
    async with serving(daemon, path):
        client = DaemonClient(path)
        told = await on_thread(client.reload_account)
        assert (told.linked, told.changed) == (True, True)
        with pytest.raises(DarkbloomError, match="draining") as caught:
            await on_thread(client.reload_models)
        assert caught.value.next_step == "wait"


async def test_a_page_in_a_browser_cannot_make_it_reload() -> None:
    async with raw(FakeDaemon(), Origin="https://evil.example") as http:
        assert (await http.post(RELOAD_ACCOUNT_PATH)).status_code == 403


async def test_without_a_daemon_the_client_says_how_to_start_one(short_home: Path) -> None:
    with pytest.raises(UnreachableError, match="No daemon is running") as caught:
        DaemonClient(short_home / "none.sock").status()
    assert caught.value.exit_code == 3
    assert "darkbloom serve" in (caught.value.next_step or "")
    assert "darkbloom start" in (caught.value.next_step or "")


async def test_a_daemon_that_does_not_answer_is_told_apart_from_none(short_home: Path) -> None:
    path = short_home / "daemon.sock"

    async def mute(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    over, hung_up = asyncio.Event(), asyncio.Event()
    async with await asyncio.start_unix_server(mute, path):
        with pytest.raises(UnreachableError, match="does not answer"):
            await on_thread(DaemonClient(path, timeout=0.05).status)
        over.set()
        await hung_up.wait()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Referer": "https://evil.example/page"},
        {"Host": "localhost"},
        {"Host": "127.0.0.1:80"},
        {"Host": ""},
        {"Host": f"{HOST}.evil.example"},
    ],
)
async def test_requests_that_look_like_a_browsers_are_refused(headers: dict[str, str]) -> None:
    daemon = FakeDaemon()
    async with raw(daemon, **headers) as http:
        for method, path in (("GET", "/v1/status"), ("POST", "/v1/drain")):
            response = await http.request(method, path)
            assert response.status_code == 403
            assert "pid" not in response.text
    assert daemon.drained == []


async def test_every_answer_names_the_daemons_version() -> None:
    async with raw(FakeDaemon()) as http:
        for path in ("/v1/status", "/nowhere"):
            assert (await http.get(path)).headers[VERSION_HEADER] == "9.9"


async def test_the_route_table_holds_status_and_drain_only() -> None:
    async with raw(FakeDaemon()) as http:
        assert (await http.get("/v1/status")).status_code == 200
        assert (await http.post("/v1/status")).status_code == 405
        assert (await http.get("/v1/drain")).status_code == 405
        assert (await http.get("/")).status_code == 404


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"deadline_s": -1}', b'{"deadline_s": "NaN"}', b"x" * 100_000]
)
async def test_a_bad_drain_request_is_refused_and_stops_nothing(body: bytes) -> None:
    daemon = FakeDaemon()
    async with raw(daemon) as http:
        assert (await http.post("/v1/drain", content=body)).status_code == 400
    assert daemon.drained == []


async def test_a_drain_without_a_deadline_takes_the_default() -> None:
    daemon = FakeDaemon()
    async with raw(daemon) as http:
        assert (await http.post("/v1/drain")).status_code == 202
    assert daemon.drained == [120.0]


async def test_another_version_is_told_with_what_to_do(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    async with serving(FakeDaemon(), path):
        client = DaemonClient(path, version="0.0.0")
        await on_thread(client.status)
    assert client.skew is not None
    assert "0.0.0" in client.skew
    assert "darkbloom stop" in client.skew


@contextlib.asynccontextmanager
async def answering(path: Path, headers: bytes) -> AsyncIterator[None]:
    """Something on the socket that answers every request with an empty object."""
    reply = b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The client knocks before it asks: that connection ends without a word.
        with contextlib.suppress(asyncio.IncompleteReadError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            await writer.drain()

    async with await asyncio.start_unix_server(answer, path):
        yield


async def test_a_stranger_on_the_socket_is_not_taken_for_a_daemon(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    async with answering(path, b""):
        with pytest.raises(UnreachableError, match="Something else"):
            await on_thread(DaemonClient(path).status)


async def test_an_answer_of_an_unknown_shape_is_a_typed_error(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    async with answering(path, b"Darkbloom-Version: 99\r\n"):
        with pytest.raises(DarkbloomError, match="cannot be understood") as caught:
            await on_thread(DaemonClient(path).status)
    assert "version 99" in (caught.value.why or "")


async def test_two_daemons_cannot_share_a_socket(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    async with serving(FakeDaemon(), path):
        with pytest.raises(AlreadyRunningError):
            async with serving(FakeDaemon(), path):
                pass
        await on_thread(DaemonClient(path).status)


async def test_the_server_leaves_the_processs_signals_alone(short_home: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    async with serving(FakeDaemon(), short_home / "daemon.sock"):
        await on_thread(DaemonClient(short_home / "daemon.sock").status)
        assert {n: signal.getsignal(n) for n in before} == before


async def test_an_idle_socket_wakes_nobody(
    short_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at

    def counted(when: float, *arguments: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **options)

    async with serving(FakeDaemon(), short_home / "daemon.sock"):
        await on_thread(DaemonClient(short_home / "daemon.sock").status)
        monkeypatch.setattr(loop, "call_at", counted)
        await asyncio.sleep(0.35)  # A loop that looks round every 0.1 s would have set three more.
        assert len(timers) == 1


async def test_a_cancelled_daemon_leaves_no_socket_behind(short_home: Path) -> None:
    path = short_home / "daemon.sock"
    up = asyncio.Event()

    async def live() -> None:
        async with serving(FakeDaemon(), path):
            await on_thread(DaemonClient(path).status)
            up.set()
            await asyncio.Event().wait()

    life = asyncio.create_task(live())
    await up.wait()
    life.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert not path.exists()
