"""The coordinator as a process sees it: it starts, says where, keeps its data and really stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from darkbloom_provider.coordinator.server import running_coordinator
from darkbloom_provider.coordinator.settings import Policy, Settings, is_loopback
from darkbloom_provider.errors import AlreadyRunningError, UsageError
from darkbloom_provider.logs import Secret
from darkbloom_provider.models.catalogue import Catalogue
from support.network import CHAT, CREDIT, QUICK, chat, network
from support.scripted_provider import Job, scripted_provider

CATALOGUE = Catalogue.builtin()


def settings(directory: Path, port: int = 0) -> Settings:
    return Settings(state_directory=directory, port=port, timing=QUICK)


async def test_a_port_that_is_taken_says_so_and_what_to_type(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AlreadyRunningError) as caught:
            async with running_coordinator(settings(tmp_path, port), CATALOGUE):
                pass
        assert str(port) in caught.value.what
        assert f"--port {port + 1}" in str(caught.value.next_step)
    # The directory was not left locked.
    async with running_coordinator(settings(tmp_path), CATALOGUE):
        pass


async def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path) -> None:
    away = Settings(tmp_path, host="192.0.2.1", port=0, admin_key=Secret("k"))
    with pytest.raises(UsageError, match="Cannot listen"):
        async with running_coordinator(away, CATALOGUE):
            pass


async def test_two_coordinators_do_not_share_a_directory(tmp_path: Path) -> None:
    async with running_coordinator(settings(tmp_path), CATALOGUE):
        with pytest.raises(AlreadyRunningError):
            async with running_coordinator(settings(tmp_path), CATALOGUE):
                pass


async def test_state_is_private_to_its_owner(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    async with running_coordinator(settings(directory), CATALOGUE):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for file in directory.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_only_loopback_without_an_admin_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opens the coordinator"):
        Settings(tmp_path, host="0.0.0.0")  # noqa: S104 - that is the point
    Settings(tmp_path, host="0.0.0.0", admin_key=Secret("k"))  # noqa: S104 - that is the point
    with pytest.raises(UsageError, match="A proxy opens the coordinator"):
        Settings(tmp_path, proxies=("127.0.0.1",))
    assert [is_loopback(h) for h in ("::1", "127.9.9.9", "LOCALHOST", "example.org")] == [
        True,
        True,
        True,
        False,
    ]


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="101 %"):
        Policy(fee_percent=101)
    with pytest.raises(UsageError, match="negative"):
        Policy(minimum_charge_micro_usd=-1)


async def test_the_callers_own_error_comes_out_unwrapped(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with running_coordinator(settings(tmp_path), CATALOGUE):
            raise LookupError("mine")


async def test_money_accounts_and_keys_survive_a_restart(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        headers = dict(net.http.headers)
        session = net.coordinator.operator.session_token(net.account).reveal()
    async with network(tmp_path) as net:
        url = net.coordinator.base_url
        async with httpx.AsyncClient(base_url=url) as client:
            authorization = {"Authorization": headers["authorization"]}
            held = await client.get("/v1/payments/balance", headers=authorization)
            assert held.json()["balance_micro_usd"] == CREDIT
            signed_in = {"Authorization": f"Bearer {session}"}
            assert (await client.post("/v1/auth/keys", headers=signed_in)).status_code == 200


async def test_it_stops_within_seconds_with_everything_open(tmp_path: Path) -> None:
    async def endless(job: Job) -> None:
        await job.say("half")
        await job.cancelled.wait()

    async def silent(job: Job) -> None:
        await job.accept()

    began = time.monotonic()
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, endless) as provider,
        connect(net.ws_url),
        net.http.stream("POST", CHAT, json=chat(stream=True)) as response,
    ):
        # One stream open, one request queued, one idle connection, two websockets.
        await anext(response.aiter_bytes())
        provider.script = silent
        waiting = asyncio.create_task(net.ask())
        idle = await asyncio.open_connection("127.0.0.1", int(net.ws_url.split(":")[2][:5]))
        await net.until(lambda: net.coordinator.hub.requests.count == 2)
        stopping = asyncio.create_task(net.coordinator.hub.stop())
        assert (await waiting).status_code == 503
        await stopping
        idle[1].close()
        await idle[1].wait_closed()
    assert time.monotonic() - began < 5


async def test_a_consumer_who_never_reads_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async def flood(job: Job) -> None:
        for _ in range(200):
            await job.chunk("data: " + "x" * 65_536)
        await job.cancelled.wait()

    async with network(tmp_path) as net:
        request = httpx.Request("POST", net.coordinator.base_url + CHAT, json=chat(stream=True))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(net.coordinator.base_url.rsplit(":", 1)[1]), limit=1024
        )
        head = "".join(
            f"{name}: {value}\r\n"
            for name, value in (
                *request.headers.items(),
                ("authorization", net.http.headers["authorization"]),
            )
        )
        async with scripted_provider(net.ws_url, flood):
            writer.write(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
            await reader.readuntil(b"\r\n\r\n")
            [session] = net.coordinator.hub.registry
            # Megabytes wait in the coordinator: its write to the consumer is stuck.
            await net.until(lambda: any(a._buffered > 2**20 for a in session.attempts.values()))
            began = time.monotonic()
            # The block ends here: the coordinator stops while the stream is stuck.
    assert time.monotonic() - began < 6
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"not json", 400, "invalid_request_error"),
        (b'{"model":"gpt-9","messages":[1]}', 404, "model_not_found"),
        (b'{"model":"smollm2-135m-instruct","messages":[]}', 400, "invalid_request_error"),
    ],
)
async def test_a_bad_request_is_a_typed_error_and_costs_nothing(
    tmp_path: Path, body: bytes, status: int, kind: str
) -> None:
    async with network(tmp_path) as net:
        reply = await net.http.post(CHAT, content=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
        assert await net.job_states() == []


@pytest.mark.parametrize("limit", [0, -5])
async def test_max_tokens_of_zero_or_less_names_the_parameter(tmp_path: Path, limit: int) -> None:
    async with network(tmp_path) as net:
        reply = await net.ask(max_tokens=limit)
        assert reply.status_code == 400
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert "max_tokens" in reply.json()["error"]["message"]
        assert await net.spent() == 0


async def test_nobody_gets_in_without_a_key(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        for bearer in ("", "Bearer wrong", "Basic x"):
            reply = await net.http.post(CHAT, json=chat(), headers={"Authorization": bearer})
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "authentication_error"
        missing = await net.http.get("/nowhere")
        assert missing.status_code == 404


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_ends_the_command_with_exit_code_zero(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "darkbloom_provider"),
        *("coordinator", "serve", "--port", "0", "--data", str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode()]
    while "Ctrl-C" not in lines[-1]:
        assert lines[-1], await process.stderr.read() if process.stderr else ""
        lines.append((await process.stdout.readline()).decode())
    url = lines[0].split()[1]
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/health")).json()["status"] == "ok"
    process.send_signal(number)
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0, err
    assert b"Stopped." in out
