"""The load: clients that ask one after the other, each reading its answer as a stream.

Deliberately bare, because it runs on the cores that are measured: no library between the socket and
the lines, and of the events only the first text and the usage are looked into. Every server gets
the same client.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PREFIX = b"data: "
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server."""

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Round:
    """What one round of load came to."""

    tokens_per_second: float
    first_token: tuple[float, ...]
    """Seconds to the first text, of each request."""


async def load(server: Server, prompts: Sequence[Sequence[str]], tokens_out: int) -> Round:
    """As many clients as there are lists of prompts, each asking its own one after the other."""

    async def client(mine: Sequence[str]) -> list[tuple[int, float]]:
        return [await ask(server, prompt, tokens_out) for prompt in mine]

    start = time.perf_counter()
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(*map(client, prompts))
    elapsed = time.perf_counter() - start
    flat = [answer for some in answers for answer in some]
    return Round(sum(tokens for tokens, _ in flat) / elapsed, tuple(first for _, first in flat))


async def ask(server: Server, prompt: str, tokens_out: int) -> tuple[int, float]:
    """One streamed chat: completion tokens by the server's count, seconds to the first text."""
    start = time.perf_counter()
    first, usage = 0.0, None
    async for event in _events(server, _body(server, prompt, tokens_out)):
        if not first and _text(event):
            first = time.perf_counter() - start
        if b'"usage"' in event:
            usage = json.loads(event).get("usage") or usage
    if usage is None:
        raise RuntimeError(f"{server.base_url} said no usage")
    return int(usage["completion_tokens"]), first


def _body(server: Server, prompt: str, tokens_out: int) -> bytes:
    wanted: Mapping[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens_out,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(wanted).encode()


def _text(event: bytes) -> str:
    document = json.loads(event)
    if "error" in document:
        raise RuntimeError(f"a stream failed: {document['error']}")
    return "".join(choice["delta"].get("content") or "" for choice in document["choices"])


async def _events(server: Server, body: bytes) -> AsyncIterator[bytes]:
    """The JSON of every event of the answer, up to the mark of its end."""
    address = urlsplit(server.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        key = "" if server.key is None else f"Authorization: Bearer {server.key}\r\n"
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status = await reader.readline()
        headers = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status:
            said = (await reader.read()).decode(errors="replace")
            raise RuntimeError(f"{server.base_url}: {status.decode().strip()}: {said}")
        async for line in _lines(reader, chunked=b"transfer-encoding: chunked" in headers.lower()):
            if line == PREFIX + b"[DONE]":
                return
            if line.startswith(PREFIX):
                yield line.removeprefix(PREFIX)
    finally:
        writer.close()
        await writer.wait_closed()


async def _lines(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        while line := await reader.readline():
            yield line.rstrip()
        return
    rest = b""
    while size := int(await reader.readline(), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.rstrip()
