"""A job runner with a real engine and a connection, and the coordinator's end of its line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from darkbloom_provider.daemon.answers import Answers
from darkbloom_provider.daemon.books import opened
from darkbloom_provider.daemon.jobs import JobRunner
from darkbloom_provider.daemon.tally import Tally
from darkbloom_provider.daemon.terms import Offer, Terms
from darkbloom_provider.earnings.journal import Journal
from darkbloom_provider.engine.engine import Engine
from darkbloom_provider.link.connection import Connection
from darkbloom_provider.link.session import Timings
from darkbloom_provider.link.socket import SocketLimits
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import InferenceRequest, InferenceResponseChunk
from darkbloom_provider.protocol.money import DEFAULT_PRICE
from support.daemon_parts import MODEL, NOW
from support.link_rig import Facts
from support.manual_time import settle
from support.piped_socket import PipedSocket
from support.processes import until


@dataclass
class ServedLine:
    """A line that requests are served on."""

    engine: Engine
    socket: PipedSocket
    runner: JobRunner
    channel: Channel

    def ask(self, request_id: str, request: bytes) -> None:
        box = self.channel.payload(request)
        self.socket.say(InferenceRequest(request_id=request_id, encrypted_body=box))

    async def until_sent(self, request_id: str, kind: type) -> None:
        def sent() -> bool:
            return any(
                isinstance(m, kind) and getattr(m, "request_id", None) == request_id
                for m in self.socket.sent
            )

        await until(sent, f"{kind.__name__} of {request_id}")

    async def ended(self, request_id: str, kind: type) -> None:
        await self.until_sent(request_id, kind)
        await self.idle()

    async def idle(self) -> None:
        await until(lambda: self.runner.counts().in_flight == 0, "the job to be over")
        await settle()

    def chunks(self, request_id: str | None = None) -> list[str]:
        """What the chunks held, of one request or of all."""
        return [
            self.channel.open(message.encrypted_data.ciphertext).decode()
            for message in self.socket.sent
            if isinstance(message, InferenceResponseChunk)
            and message.encrypted_data is not None
            and request_id in {None, message.request_id}
        ]


@asynccontextmanager
async def served_line(model: Path, root: Path) -> AsyncIterator[ServedLine]:
    keys, session, tally = KeyPair.generate(), KeyPair.generate(), Tally()
    terms = Terms(
        key_pair=keys, price=lambda _: DEFAULT_PRICE, linked=lambda: True, now=lambda: NOW
    )
    socket = PipedSocket()
    async with Engine() as engine, asyncio.TaskGroup() as tasks:
        await engine.load(MODEL, model)

        async def prepare(_model: str) -> None:
            """It is loaded."""

        offer = Offer(models=lambda: (MODEL,), prepare=prepare)
        reader = Answers(engine, offer, tally, tasks, terms.now)
        async with opened(
            lambda: Journal.open(root / "journal.sqlite3"),
            tasks,
            provider_key=keys.public_text,
            now=NOW,
        ) as books:
            runner = JobRunner(reader, books, terms, tally, tasks)
            connection = Connection(
                socket,  # type: ignore[arg-type]  # what a connection needs of a socket
                facts=Facts(),
                jobs=runner,
                clock=lambda: 0.0,
                sleep=asyncio.sleep,
                timings=Timings(),
                limits=SocketLimits(),
                changed=lambda: None,
            )
            holding = tasks.create_task(connection.hold())
            try:
                yield ServedLine(engine, socket, runner, Channel(session, keys.public_text))
            finally:
                socket.hang_up()
                await holding
