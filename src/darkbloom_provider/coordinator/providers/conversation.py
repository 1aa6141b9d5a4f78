"""One provider's websocket: frames in, messages out, and the challenges that keep it honest.

The reader never waits for a consumer, for a challenge, or for the settlement of a job, beside which
the machine's other answers go on; it waits for the ledger only when a registration is written, and
then for the jobs that were completed before it: they were earned by whom the machine was until now.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from darkbloom_provider import logs
from darkbloom_provider.coordinator.providers import challenges
from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registration import Registrar
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.routing.advice import routing_status, same_reasons
from darkbloom_provider.coordinator.store.database import LedgerUnavailableError
from darkbloom_provider.protocol import codec
from darkbloom_provider.protocol.codec import FrameError
from darkbloom_provider.protocol.messages import (
    ROUTING_STATUS,
    AttestationChallenge,
    AttestationResponse,
    CoordinatorMessage,
    Heartbeat,
    InferenceComplete,
    ProviderMessage,
    Register,
    RuntimeStatus,
)

_TRY_AGAIN_LATER: Final = 1013

_log = logs.get("coordinator")


class ProviderSocket:
    """The sending half of a provider's websocket (`registry.Wire`)."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, message: CoordinatorMessage, patience: float) -> bool:
        """Send one message; False if the connection is gone or stuck for `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._websocket.send_text(codec.encode(message))
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            # Starlette raises RuntimeError when the connection was closed a moment ago.
            return False
        return True

    async def close(self, code: int, reason: str) -> None:
        """Close it. Never raises."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await self._websocket.close(code, reason)


class Conversation:
    """One connection, from the upgrade to its end."""

    def __init__(self, websocket: WebSocket, hub: Hub, registrar: Registrar) -> None:
        self._websocket = websocket
        self._wire = ProviderSocket(websocket)
        self._hub = hub
        self._registrar = registrar
        self._session: Session | None = None
        self._asked: AttestationChallenge | None = None
        self._answer: asyncio.Future[AttestationResponse] | None = None
        self._settling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the connection until it ends, then forget its provider."""
        await self._websocket.accept()
        try:
            async with asyncio.TaskGroup() as tasks:
                challenger: asyncio.Task[None] | None = None
                while (message := await self._next()) is not None:
                    if not isinstance(message, Register):
                        await self._hear(message, tasks)
                    elif await self._register(message):
                        if challenger is not None:
                            challenger.cancel()
                        challenger = tasks.create_task(self._challenge_forever())
                if challenger is not None:
                    challenger.cancel()
        finally:
            if self._session is not None:
                self._hub.drop(self._session, "it disconnected")

    async def _next(self) -> ProviderMessage | None:
        """The next message that makes sense; None at the end of the connection."""
        while True:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                _log.info("provider_socket_closed", code=event.get("code"))
                return None
            text = event.get("text")
            try:
                return codec.decode_from_provider(event["bytes"] if text is None else text)
            except FrameError as error:
                _log.warning("frame_ignored", reason=error.why)

    async def _hear(self, message: ProviderMessage, tasks: asyncio.TaskGroup) -> None:
        session = self._session
        if session is None or session not in self._hub.registry:
            _log.warning("message_ignored", kind=message.type, reason="not registered")
            return
        match message:
            case Heartbeat():
                session.hear(message, self._hub.sources.monotonic())
                self._hub.serve_waiting()
                await self._tell_reasons(session)
            case AttestationResponse():
                self._take_answer(message)
            case Register():
                pass
            case InferenceComplete():
                settling = self._hub.completed(session, message)
                if settling is not None:
                    task = tasks.create_task(settling)
                    self._settling.add(task)
                    task.add_done_callback(self._settling.discard)
            case _:
                await self._hub.hear(session, message)

    async def _register(self, message: Register) -> bool:
        before = self._session
        if self._settling:
            # A wallet's last earnings have to be there before a sweep moves what it holds.
            await asyncio.wait(self._settling)
        try:
            fresh = await self._registrar.admit(message, self._wire)
        except LedgerUnavailableError as error:
            _log.error("registration_failed", reason=error.why)
            if before is not None:
                self._hub.drop(before, "it could not register again")
            self._session = None
            await self._wire.close(_TRY_AGAIN_LATER, "the coordinator cannot register you now")
            return False
        self._session = self._hub.renewed(before, fresh)
        await self._hub.join(self._session)
        await self._tell_mismatches(self._session, message)
        return True

    # ------------------------------------------------------------ challenges

    async def _challenge_forever(self) -> None:
        clock, timing = self._hub.sources.monotonic, self._hub.timing
        while True:
            began = clock()
            if (session := self._session) is not None:
                await self._challenge(session)
                session.judged = True
                await self._tell_reasons(session)
            await asyncio.sleep(max(0.0, timing.challenge_interval - (clock() - began)))

    async def _challenge(self, session: Session) -> None:
        sources, timing = self._hub.sources, self._hub.timing
        asked = challenges.new_challenge(sources.entropy(challenges.NONCE_BYTES), sources.now())
        self._asked, self._answer = asked, asyncio.get_running_loop().create_future()
        try:
            if not await self._wire.send(asked, timing.write_challenge):
                self._failed(session, challenges.Verdict("the challenge could not be sent"))
                return
            async with asyncio.timeout(timing.challenge_answer):
                answer = await self._answer
        except TimeoutError:
            self._failed(session, challenges.Verdict("no answer in time"))
            return
        finally:
            if self._asked is asked:  # else a new registration has asked anew
                self._asked = self._answer = None
        verdict = challenges.judge(
            asked,
            answer,
            registered_key=session.public_key,
            attestation_key=session.attestation.public_key if session.attestation else None,
            accepted_binaries=self._hub.policy.accepted_binary_hashes,
            weights=self._registrar.weights(session.active_model),
        )
        if verdict.problem is not None:
            self._failed(session, verdict)
        elif await self._tell_mismatches(session, answer):
            self._passed(session, answer)

    def _take_answer(self, answer: AttestationResponse) -> None:
        if self._asked is None or self._answer is None or answer.nonce != self._asked.nonce:
            _log.warning("challenge_answer_ignored", reason="nobody asked")
        elif not self._answer.done():
            self._answer.set_result(answer)

    async def _tell_mismatches(
        self, session: Session, source: Register | AttestationResponse
    ) -> bool:
        """Whether the runtime is accepted; if not, the provider is told why."""
        mismatches = challenges.runtime_mismatches(source, self._hub.policy)
        session.runtime_verified = not mismatches
        if mismatches:
            status = RuntimeStatus(verified=False, mismatches=mismatches)
            await self._wire.send(status, self._hub.timing.write_challenge)
        return session.runtime_verified

    async def _tell_reasons(self, session: Session) -> None:
        """Tell a provider that understands it why it gets no work, when that has changed."""
        hub = self._hub
        if (
            ROUTING_STATUS not in session.extensions
            or not session.judged
            or session not in hub.registry
        ):
            return
        status = routing_status(
            session.candidate(),
            rules=hub.rules,
            sizes=self._registrar.sizes(),
            now=hub.sources.monotonic(),
        )
        if not same_reasons(status, session.told):
            session.told = status
            await self._wire.send(status, hub.timing.write_challenge)

    def _passed(self, session: Session, answer: AttestationResponse) -> None:
        session.verified_at = self._hub.sources.monotonic()
        session.sip_verified = True
        session.challenge_failures = 0
        session.challenge_problem = None
        if session.privacy is not None:
            measured = {
                "sip_enabled": bool(answer.sip_enabled),
                "hypervisor_active": bool(answer.hypervisor_active),
            }
            session.privacy = session.privacy.model_copy(update=measured)
        self._hub.serve_waiting()

    def _failed(self, session: Session, verdict: challenges.Verdict) -> None:
        session.verified_at = None
        session.sip_verified = False
        session.challenge_failures += 1
        session.challenge_problem = verdict.problem
        _log.warning("challenge_failed", session=session.id, reason=verdict.problem)
        if verdict.untrusted or session.challenge_failures >= self._hub.limits.challenge_failures:
            session.distrust()
