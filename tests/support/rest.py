"""A coordinator's REST API made of scripted answers, as a transport and as a loopback server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

TOKEN = "eigeninference-pt-" + "ab" * 32
CODE = {
    "device_code": "3f" * 32,
    "user_code": "ABCD-2345",
    "verification_uri": "https://console.example/link",
    "expires_in": 900,
    "interval": 5,
}
EXTENSIONS = ["device-token-read", "device-revoke", "earnings-filter"]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Script:
    """Answers by `"METHOD /path"`. The last answer of a list is repeated; what is absent is 404."""

    answers: dict[str, Answer | list[Answer]]
    asked: list[str] = field(default_factory=list)
    authorized: list[str | None] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def answer(self, method: str, target: str, authorization: str | None, body: bytes) -> Answer:
        self.asked.append(f"{method} {target}")
        self.authorized.append(authorization)
        self.bodies.append(body)
        found = self.answers.get(f"{method} {target.partition('?')[0]}")
        if found is None:
            return Answer(404, b"404 page not found\n")
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def transport(self) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            target = request.url.raw_path.decode()
            authorization = request.headers.get("Authorization")
            found = self.answer(request.method, target, authorization, request.content)
            return httpx.Response(found.status, content=found.content, headers=found.headers)

        return httpx.MockTransport(handle)


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """`script` on a free loopback port; yields the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            found = script.answer(
                self.command, self.path, self.headers.get("Authorization"), self.rfile.read(length)
            )
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def account_reply(**changes: Any) -> dict[str, Any]:
    """The account of the documented sample: every number the layout shows comes from here."""
    reply: dict[str, Any] = {
        "account_id": "5ada837c-c689-4c67-ae60-699c1eb96495",
        "earnings": [
            earning_row(2, 182, "qwen3.5-27b-claude-opus-8bit", "2026-05-01T11:59:58.123456789Z"),
            earning_row(
                1, 94, "mlx-community/gemma-4-26b-a4b-it-8bit", "2026-05-01T11:59:57.123456Z"
            ),
        ],
        "total_micro_usd": 12_340_000,
        "total_usd": "12.340000",
        "count": 8423,
        "recent_count": 2,
        "history_limit": 5,
        "available_balance_micro_usd": 4_821_200,
        "available_balance_usd": "4.821200",
        "withdrawable_balance_micro_usd": 4_821_200,
        "withdrawable_balance_usd": "4.821200",
    }
    return reply | changes


def earning_row(number: int, amount: int, model: str, at: str) -> dict[str, Any]:
    return {
        "id": number,
        "account_id": "5ada837c-c689-4c67-ae60-699c1eb96495",
        "provider_id": "b7b1f0c2-4e0e-4a53-9d56-0c3f5f4a9f11",
        "provider_key": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=",
        "job_id": f"0d9f2b7e-6f0a-4a58-8f5b-{number:012d}",
        "model": model,
        "amount_micro_usd": amount,
        "prompt_tokens": 1000,
        "completion_tokens": 2000,
        "created_at": at,
    }


def error(kind: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}
