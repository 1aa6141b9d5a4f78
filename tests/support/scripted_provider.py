"""A provider that does what its script says: a websocket client for tests of a coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from darkbloom_provider.protocol import codec, openai
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    Cancel,
    CpuCores,
    EncryptedPayload,
    Hardware,
    Heartbeat,
    InferenceAccepted,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    ModelInfo,
    PrivacyCapabilities,
    ProviderMessage,
    Register,
    RoutingStatus,
    RuntimeStatus,
    Usage,
)

MODEL = "smollm2-135m-instruct"
WALLET = "0x8e6c57bb205bb373fe4e3a6f69404a8bb767b417"

PROMISES = PrivacyCapabilities(
    text_backend_inprocess=True,
    text_proxy_disabled=True,
    python_runtime_locked=True,
    dangerous_modules_blocked=True,
    sip_enabled=True,
    anti_debug_enabled=True,
    core_dumps_disabled=True,
    env_scrubbed=True,
)


def registration(keys: KeyPair, **changes: Any) -> Register:
    """A registration that any coordinator without a trust floor routes to."""
    plain = Register(
        hardware=Hardware(
            machine_model="Mac16,5",
            chip_name="Apple M4 Max",
            memory_gb=64,
            cpu_cores=CpuCores(total=16, performance=12, efficiency=4),
            memory_bandwidth_gbs=546.0,
        ),
        models=(ModelInfo(id=MODEL, size_bytes=540_000_000, model_type="text"),),
        backend="inprocess-mlx",
        version="0.4.7",
        public_key=keys.public_text,
        encrypted_response_chunks=True,
        privacy_capabilities=PROMISES,
        machine_id="00112233445566778899aabbccddeeff",
    )
    return plain.model_copy(update=changes)


@dataclass
class Job:
    """One request as the provider sees it, with the words to answer it."""

    provider: ScriptedProvider
    id: str
    body: dict[str, Any]
    channel: Channel
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def accept(self) -> None:
        await self.provider.send(InferenceAccepted(request_id=self.id))

    async def chunk(self, text: str, *, usage: tuple[int, int] | None = None) -> None:
        """One sealed chunk of raw text, with running counts if given."""
        counts = None if usage is None else _usage(usage)
        payload = self.channel.payload(text.encode())
        await self.chunk_of(payload, counts)

    async def chunk_of(self, payload: EncryptedPayload | None, usage: Usage | None = None) -> None:
        """One chunk with whatever payload the test wants."""
        await self.provider.send(
            InferenceResponseChunk(request_id=self.id, encrypted_data=payload, usage=usage)
        )

    async def say(self, content: str, *, usage: tuple[int, int] | None = None) -> None:
        """One piece of a streamed answer."""
        await self.chunk(delta(content, self.id), usage=usage)

    async def answer(self, content: str, *, usage: tuple[int, int]) -> None:
        """A whole answer in one object."""
        await self.chunk(
            openai.completion_event(
                id=f"chatcmpl-{self.id}",
                created=1_760_000_000,
                model=MODEL,
                content=content,
                finish_reason="stop",
                prompt_tokens=usage[0],
                completion_tokens=usage[1],
            )
        )

    async def complete(self, prompt: int, completion: int, **more: Any) -> None:
        await self.provider.send(
            InferenceComplete(request_id=self.id, usage=_usage((prompt, completion)), **more)
        )

    async def fail(self, error: str = "engine failed", status_code: int = 500) -> None:
        await self.provider.send(
            InferenceError(request_id=self.id, error=error, status_code=status_code)
        )


Script = Callable[[Job], Coroutine[Any, Any, None]]


@dataclass
class ScriptedProvider:
    """One connection. `jobs` holds every request that came, by id, in order."""

    connection: ClientConnection
    keys: KeyPair
    script: Script
    answers: Callable[[AttestationChallenge], AttestationResponse | None]
    jobs: dict[str, Job] = field(default_factory=dict)
    statuses: list[RuntimeStatus] = field(default_factory=list)
    reasons: list[RoutingStatus] = field(default_factory=list)
    challenges: list[AttestationChallenge] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)

    async def send(self, message: ProviderMessage) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self.connection.send(codec.encode(message))

    async def send_raw(self, frame: str | bytes) -> None:
        await self.connection.send(frame)

    async def heartbeat(self, **changes: Any) -> None:
        await self.send(Heartbeat(status="idle").model_copy(update=changes))

    async def run(self) -> None:
        """Read until the connection ends, running the script for every request."""
        async with asyncio.TaskGroup() as tasks:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    frame = await self.connection.recv(decode=False)
                    await self._hear(frame, tasks)

    async def _hear(self, frame: bytes, tasks: asyncio.TaskGroup) -> None:
        match codec.decode_from_coordinator(frame):
            case AttestationChallenge() as challenge:
                self.challenges.append(challenge)
                answer = self.answers(challenge)
                if answer is not None:
                    await self.send(answer)
            case InferenceRequest(request_id=job_id, encrypted_body=EncryptedPayload() as sealed):
                channel = Channel(self.keys, sealed.ephemeral_public_key)
                body = json.loads(channel.open(sealed.ciphertext))
                job = Job(self, job_id, body, channel)
                self.jobs[job_id] = job
                tasks.create_task(self.script(job))
            case Cancel(request_id=job_id):
                self.cancels.append(job_id)
                if job_id in self.jobs:
                    self.jobs[job_id].cancelled.set()
            case RuntimeStatus() as status:
                self.statuses.append(status)
            case RoutingStatus() as told:
                self.reasons.append(told)


def honest(keys: KeyPair) -> Callable[[AttestationChallenge], AttestationResponse | None]:
    """Answers as a machine without a Secure Enclave does."""
    return lambda challenge: AttestationResponse(
        nonce=challenge.nonce,
        signature="unsigned",
        public_key=keys.public_text,
        rdma_disabled=True,
        sip_enabled=True,
    )


@contextlib.asynccontextmanager
async def scripted_provider(
    ws_url: str,
    script: Script,
    *,
    keys: KeyPair | None = None,
    answers: Callable[[AttestationChallenge], AttestationResponse | None] | None = None,
    **register: Any,
) -> AsyncIterator[ScriptedProvider]:
    """A provider that has registered; `register` changes fields of its registration."""
    keys = keys or KeyPair.generate()
    async with connect(ws_url, max_size=codec.MAX_COORDINATOR_FRAME, compression=None) as socket:
        provider = ScriptedProvider(socket, keys, script, answers or honest(keys))
        reader = asyncio.create_task(provider.run())
        try:
            await provider.send(registration(keys, **register))
            await provider.heartbeat()
            yield provider
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader


def delta(content: str, job_id: str = "job") -> str:
    """A streamed piece as a provider writes it."""
    return openai.chunk_event(
        id=f"chatcmpl-{job_id}", created=1_760_000_000, model=MODEL, delta={"content": content}
    )


def _usage(counts: tuple[int, int]) -> Usage:
    return Usage(prompt_tokens=counts[0], completion_tokens=counts[1])
