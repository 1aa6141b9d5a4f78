"""Processes that die at the worst moment: the consumer is told, and no money moves."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import (
    EncryptedPayload,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    Register,
)
from support.network import CHAT, CREDIT
from support.processes import PATIENCE_S, Program, darkbloom, free_port, running, until
from support.provider_home import MODEL, journal_rows, provider_home
from support.scripted_coordinator import scripted_coordinator

LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
    "max_tokens": 900,
}
"""Takes the tiny model a good second, and its chunks come 40 ms apart at the least."""


async def test_a_coordinator_killed_mid_stream_comes_back_with_its_books_right(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    """Two lives of one coordinator on one port and one directory; the provider outlives both."""
    port, data = free_port(), tmp_path / "coordinator"
    base = f"http://127.0.0.1:{port}"
    serve = ("coordinator", "serve", "--port", str(port), "--data", str(data), "--rate-limit", "0")
    made = darkbloom(
        *("coordinator", "key", "--data", str(data), "--email", "c@example.org"),
        *("--credit", "5"),
        home=tmp_path / "operator",
    )
    (key,) = re.findall(r"eigeninference-[0-9a-f]{64}", made.stdout)
    home = provider_home(home_root, base, tiny_model)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=base, headers=headers, timeout=30) as http:

        async def routable() -> bool:
            try:
                return bool((await http.get("/v1/models")).json()["data"])
            except httpx.HTTPError:
                return False

        async def balance() -> int:
            held: int = (await http.get("/v1/payments/balance")).json()["balance_micro_usd"]
            return held

        with (
            running("first", *serve, home=tmp_path / "operator") as coordinator,
            running("provider", "serve", home=home.root) as provider,
        ):
            await until(routable, "the provider to be routable", of=provider)
            with pytest.raises(httpx.HTTPError):
                await stream_until_killed(http, coordinator)
            coordinator.kill()
            with running("second", *serve, home=tmp_path / "operator") as restarted:
                await until(routable, "the provider to come back", of=provider)
                assert await balance() == CREDIT
                reply = await http.post(CHAT, json=LONG | {"max_tokens": 50})
                assert reply.status_code == 200
                spent = CREDIT - await balance()
                usage = (await http.get("/v1/payments/usage")).json()["usage"]
                assert [job["cost_micro_usd"] for job in usage] == [spent]
                restarted.signal(signal.SIGINT)
                assert await restarted.ended() == 0
            assert len(journal_rows(home)) == 1


async def stream_until_killed(http: httpx.AsyncClient, coordinator: Program) -> None:
    async with http.stream("POST", CHAT, json=LONG | {"stream": True}) as reply:
        async for line in reply.aiter_lines():
            if line:
                coordinator.signal(signal.SIGKILL)


async def test_boxes_that_cannot_be_opened_are_answered_and_the_daemon_lives(
    home_root: Path, tiny_model: Path
) -> None:
    async with scripted_coordinator() as server:
        home = provider_home(home_root, server.url, tiny_model)
        with running("provider", "serve", home=home.root) as provider:
            async with asyncio.timeout(PATIENCE_S):
                peer = await server.next_peer()
                register = await peer.expect(Register)
                await peer.accept()
                for name, box in bad_boxes(register.public_key).items():
                    await peer.say(InferenceRequest(request_id=name, encrypted_body=box))
                    error = await peer.expect(InferenceError)
                    assert (error.request_id, error.status_code) == (name, 400)
                for frame in (
                    '{"type":"surprise"}',
                    "not json",
                    '{"type":"cancel","request_id":7}',
                ):
                    await peer.connection.send(frame)
                box = sealed_for(register.public_key, LONG | {"max_tokens": 5})
                await peer.say(InferenceRequest(request_id="good", encrypted_body=box))
                complete = await peer.expect(InferenceComplete)
            assert complete.request_id == "good"
            assert complete.usage.completion_tokens == 5
            assert provider.running
            assert "hello" not in provider.output


def sealed_for(public_key: str, body: object) -> EncryptedPayload:
    return Channel(KeyPair.generate(), public_key).payload(json.dumps(body).encode())


def bad_boxes(public_key: str) -> dict[str, EncryptedPayload | None]:
    good = sealed_for(public_key, LONG)
    return {
        "truncated": good.model_copy(update={"ciphertext": good.ciphertext[:20]}),
        "not base64": good.model_copy(update={"ciphertext": "%%%"}),
        "for another key": sealed_for(KeyPair.generate().public_text, LONG),
        "low order": EncryptedPayload(ephemeral_public_key="A" * 43 + "=", ciphertext="AAAA"),
        "plaintext": None,
        "not a request": sealed_for(public_key, ["not", "an", "object"]),
    }
