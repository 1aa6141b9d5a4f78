"""Stand-ins at both ends of a coordinator: providers that say words, and consumers that ask.

They share the cores with what is measured, so they are bare asyncio protocols: no library between
the socket and the frames. A provider masks with zeros, which RFC 6455 leaves to it, and sends every
chunk in a write of its own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.codec import encode
from darkbloom_provider.protocol.messages import AttestationResponse, Heartbeat
from support.processes import PATIENCE_S
from support.scripted_provider import MODEL, registration

_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_LAST = 0x80
_MASKED = 0x80
_NO_MASK = bytes(4)
_SHORT, _MEDIUM = 125, 0xFFFF
_END_OF_ANSWER = b"0\r\n\r\n"


def frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """A client's frame (RFC 6455, section 5.2) under a mask of zeros."""
    size = len(payload)
    if size <= _SHORT:
        head = bytes((_LAST | opcode, _MASKED | size))
    elif size <= _MEDIUM:
        head = bytes((_LAST | opcode, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_LAST | opcode, _MASKED | 127)) + size.to_bytes(8, "big")
    return head + _NO_MASK + payload


@dataclass(frozen=True)
class Pace:
    """How a stub answers: so many chunks, one every so many seconds."""

    chunks: int = 20
    interval_s: float = 0.002


class StubProvider(asyncio.Protocol):
    """One provider. It takes every request and says words at its pace."""

    def __init__(self, host: str, pace: Pace, token: str | None, number: int) -> None:
        self._host = host
        self._pace = pace
        self._keys = KeyPair.generate()
        self._register = registration(
            self._keys, auth_token=token, machine_id=f"{number:032x}", wallet_address=None
        )
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._open = False
        self._answering: dict[str, list[Any]] = {}
        self._ticking = False
        self.verified = asyncio.Event()
        """Set once it has answered a challenge."""

    # ------------------------------------------------------------ the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws/provider HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Take in the answer to the upgrade, then frames."""
        self._received += data
        if not self._open:
            head, found, rest = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head:
                raise RuntimeError(head.decode())
            self._open, self._received = True, rest
            self._say(encode(self._register).encode())
            self._say(encode(Heartbeat(status="idle")).encode())
        for opcode, payload in self._frames():
            if opcode == _TEXT:
                self._hear(json.loads(payload))
            elif opcode == _PING:
                self._send(frame(payload, _PONG))

    def _frames(self) -> list[tuple[int, bytes]]:
        found, data, at = [], self._received, 0
        while len(data) >= at + 2:
            size, start = data[at + 1], at + 2
            if size > _SHORT:
                width = 2 if size == _SHORT + 1 else 8
                size, start = int.from_bytes(data[start : start + width], "big"), start + width
            if len(data) < start + size:
                break
            found.append((data[at] & 0xF, data[start : start + size]))
            at = start + size
        self._received = data[at:]
        return found

    def _say(self, message: bytes) -> None:
        self._send(frame(message))

    def _send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------ the protocol

    def _hear(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "attestation_challenge":
                answer = AttestationResponse(
                    nonce=message["nonce"],
                    signature="unsigned",
                    public_key=self._keys.public_text,
                    rdma_disabled=True,
                    sip_enabled=True,
                )
                self._say(encode(answer).encode())
                self.verified.set()
            case "inference_request":
                self._take(message["request_id"], message["encrypted_body"])

    def _take(self, job: str, sealed: dict[str, str]) -> None:
        channel = Channel(self._keys, sealed["ephemeral_public_key"])
        channel.open(sealed["ciphertext"])
        self._say(f'{{"type":"inference_accepted","request_id":"{job}"}}'.encode())
        self._answering[job] = [channel, 0]
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(self._pace.interval_s, self._tick)

    def _tick(self) -> None:
        for job, state in list(self._answering.items()):
            state[1] += 1
            self._chunk(job, state[0], state[1])
            if state[1] == self._pace.chunks:
                del self._answering[job]
                self._say(
                    f'{{"type":"inference_complete","request_id":"{job}","usage":'
                    f'{{"prompt_tokens":8,"completion_tokens":{state[1]}}}}}'.encode()
                )
        self._ticking = bool(self._answering)
        if self._ticking:
            asyncio.get_running_loop().call_later(self._pace.interval_s, self._tick)

    def _chunk(self, job: str, channel: Channel, number: int) -> None:
        # What it says is when it says it.
        event = (
            f'{{"id":"chatcmpl-{job}","object":"chat.completion.chunk","created":1760000000,'
            f'"model":"{MODEL}","choices":[{{"index":0,"delta":{{"content":'
            f'" {time.perf_counter_ns()}"}},"finish_reason":null}}]}}'
        )
        self._say(
            f'{{"type":"inference_response_chunk","request_id":"{job}","encrypted_data":'
            f'{{"ephemeral_public_key":"{self._keys.public_text}",'
            f'"ciphertext":"{channel.seal(event.encode())}"}},'
            f'"usage":{{"prompt_tokens":8,"completion_tokens":{number}}}}}'.encode()
        )


@contextlib.asynccontextmanager
async def stub_providers(
    base_url: str, count: int, *, tokens: list[str] | None = None, pace: Pace | None = None
) -> AsyncIterator[list[StubProvider]]:
    """So many providers that have answered their first challenge; each with the next token."""
    address, loop = urlsplit(base_url), asyncio.get_running_loop()
    providers = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            for number in range(count):
                token = tokens[number % len(tokens)] if tokens else None
                provider = StubProvider(address.netloc, pace or Pace(), token, number)
                providers.append(provider)
                await loop.create_connection(
                    lambda provider=provider: provider,  # type: ignore[misc]
                    address.hostname or "",
                    address.port or 0,
                )
                await provider.verified.wait()
        yield providers
    finally:
        for provider in providers:
            provider.close()


@dataclass
class StubConsumer(asyncio.Protocol):
    """One client with one connection, asking again as soon as its answer is whole."""

    request: bytes
    chunks: int
    delays: list[float] | None = None
    """Where to put the age of each chunk at its arrival, in seconds; None saves looking."""
    answers: int = 0
    failure: str | None = None
    asking: bool = True
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport | None = None
    _received: list[bytes] = field(default_factory=list)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Take in a part of the answer; at its end ask the next."""
        if self.delays is not None:
            now = time.perf_counter_ns()
            for part in data.split(b'"content":" ')[1:]:
                self.delays.append((now - int(part[: part.index(b'"')])) / 1e9)
        self._received.append(data)
        if not data.endswith(_END_OF_ANSWER):
            return
        whole = b"".join(self._received)
        self._received.clear()
        if b" 200 " not in whole[:20] or whole.count(b'"content"') != self.chunks:
            self._fail(whole.decode(errors="replace"))
        elif b"data: [DONE]" not in whole:
            self._fail("an answer without its end")
        self.answers += 1
        if self.asking and self.failure is None and self.transport is not None:
            self.transport.write(self.request)
        else:
            self.idle.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The coordinator hung up."""
        if not self.idle.is_set():
            self._fail(f"{b''.join(self._received).decode(errors='replace')} {exc}")

    def _fail(self, how: str) -> None:
        self.failure = self.failure or how
        self.idle.set()


@contextlib.asynccontextmanager
async def stub_consumers(
    base_url: str, key: str, count: int, *, chunks: int, delays: list[float] | None = None
) -> AsyncIterator[list[StubConsumer]]:
    """So many consumers that ask all the time. At the end every one has its last answer whole."""
    address, loop = urlsplit(base_url), asyncio.get_running_loop()
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 4 * chunks,
            "stream": True,
        }
    ).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    consumers = [StubConsumer(request, chunks, delays) for _ in range(count)]
    try:
        for consumer in consumers:
            await loop.create_connection(
                lambda consumer=consumer: consumer,  # type: ignore[misc]
                address.hostname or "",
                address.port or 0,
            )
        yield consumers
        async with asyncio.timeout(PATIENCE_S):
            for consumer in consumers:
                consumer.asking = False
                await consumer.idle.wait()
                if consumer.failure is not None:
                    raise RuntimeError(consumer.failure)
    finally:
        for consumer in consumers:
            if consumer.transport is not None:
                consumer.transport.abort()
