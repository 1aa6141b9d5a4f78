"""`darkbloom serve --local` as its owner runs it: a process, a key, a stream, a signal."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
from pathlib import Path

import httpx

from support.processes import darkbloom, running, until
from support.provider_home import MODEL, provider_home

CHAT = "/v1/chat/completions"
CANARY = "vermilion-canary-0815"


async def test_a_local_endpoint_from_its_start_to_a_signal(
    home_root: Path, tiny_model: Path
) -> None:
    home = provider_home(home_root, "http://127.0.0.1:9", tiny_model)
    with running("local", "serve", "--local", "--port", "0", home=home.root) as program:
        await until(lambda: "Try it:" in program.output, "the endpoint", of=program)
        (url,) = re.findall(r"Endpoint: +(http://127\.0\.0\.1:\d+)/v1", program.output)
        assert stat.S_IMODE(home.local_key.stat().st_mode) == 0o600
        key = home.local_key.read_text().strip()
        body: dict[str, object] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": CANARY}],
            "max_tokens": 900,
            "temperature": 0,
            "stream": True,
        }
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            await _ask_for_json(http, body)
            shown = darkbloom("status", home=home.root).stdout
            assert f"{url}/v1" in shown
            assert "Served:         1 request," in shown
            assert "Coordinator" not in shown
            async with http.stream("POST", CHAT, json=body) as response:
                lines = response.aiter_lines()
                assert (await anext(lines)).startswith("data: {")
                program.signal(signal.SIGTERM)
                rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]", "the stream was not cut"
        assert (
            json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert await program.ended() == 0
    assert key not in program.output
    assert not home.journal.exists()
    assert not home.control_socket.exists()
    for path in home.root.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


async def _ask_for_json(http: httpx.AsyncClient, body: dict[str, object]) -> None:
    """The process is sealed: everything that a schema needs must have been loaded before."""
    shaped = body | {"stream": False, "max_tokens": 40, "response_format": {"type": "json_object"}}
    answer = await http.post(CHAT, json=shaped)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].startswith("{")


def test_a_taken_port_is_named_with_what_to_type(home_root: Path, tiny_model: Path) -> None:
    home = provider_home(home_root, "http://127.0.0.1:9", tiny_model)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = darkbloom("serve", "--local", "--port", str(port), home=home.root)
    assert refused.returncode == 1
    assert f"Port {port} is already in use" in refused.stderr
    assert f"serve --local --port {port + 1}" in refused.stderr
    assert "Traceback" not in refused.stderr
