"""What this machine says of itself to a coordinator. Cheap: nothing here waits for anything.

Slow figures (tools of the system, load of the machine) are measured beforehand, off the event
loop. Nothing is claimed that was not measured, except under `posture = "development"`, which the
settings allow on loopback only.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from darkbloom_provider import logs
from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon.speeds import MeasuredSpeeds
from darkbloom_provider.engine.requests import EngineSnapshot
from darkbloom_provider.errors import DarkbloomError
from darkbloom_provider.host.posture import Posture
from darkbloom_provider.host.runtime import Hashes
from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol import signed
from darkbloom_provider.protocol.attestation import AttestationBlob, attest
from darkbloom_provider.protocol.messages import (
    BACKEND,
    ROUTING_STATUS,
    AttestationChallenge,
    AttestationResponse,
    BackendCapacity,
    BackendSlot,
    Hardware,
    Heartbeat,
    HeartbeatStats,
    ModelInfo,
    PrivacyCapabilities,
    Register,
    SystemMetrics,
)
from darkbloom_provider.protocol.signed import SigningKey, SoftwareKey

_log = logs.get("daemon.facts")

GB = 10**9
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured at the start and does not change while the daemon runs."""

    hardware: Hardware
    posture: Posture
    wallet_address: str
    machine_id: str = field(repr=False)
    os_version: str = ""
    enclave_key: SigningKey | None = field(default=None, repr=False)
    """The key in the Secure Enclave; None where there is none."""
    runtime: Hashes | None = None
    """As of the start: the code that runs is the one that was there then."""

    @property
    def python_hash(self) -> str | None:
        """The interpreter's hash; None if it was not measured."""
        return None if self.runtime is None else self.runtime.python

    @property
    def runtime_hash(self) -> str | None:
        """The libraries' hash; None if it was not measured.

        There is no `binary_hash` beside it, as the only binary is the interpreter, and an unlisted
        one would cost the machine its trust; nor `template_hashes`: templates come with models.
        """
        return None if self.runtime is None else self.runtime.runtime


def attestation_of(machine: Machine, public_key: str, at: dt.datetime) -> str | None:
    """The signed attestation of `machine` as raw JSON; None if it would prove nothing.

    One that says "off" or "unknown" of what the coordinator demands is invalid, which is worse than
    none; one with claims would be a lie. Three optional fields are left out: the serial number,
    which the network shows to everyone; the hash of a binary, as there is none of our own (the
    interpreter's is `python_hash`); and `hypervisorActive`, which other clients do not send either.

    Args:
        machine: What was measured.
        public_key: The session's X25519 key as it is registered; the attestation is bound to it.
        at: When it was measured. Its age is not checked.
    """
    posture, key = machine.posture, machine.enclave_key
    if key is None or posture.claimed:
        return None
    if not (posture.sip_enabled and posture.secure_boot_enabled):
        return None
    blob = AttestationBlob.model_validate(
        {
            "authenticatedRootEnabled": posture.authenticated_root is True,
            "chipName": machine.hardware.chip_name,
            "encryptionPublicKey": public_key,
            "hardwareModel": machine.hardware.machine_model,
            "osVersion": machine.os_version,
            "publicKey": key.public_text,
            "rdmaDisabled": posture.rdma_disabled is True,
            "secureBootEnabled": posture.secure_boot_enabled,
            "secureEnclaveAvailable": True,
            "sipEnabled": posture.sip_enabled,
            "timestamp": at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )
    try:
        return attest(blob, key)
    except DarkbloomError as error:
        _log.error("no attestation is sent", why=str(error))
        return None


class Activity(Protocol):
    """What the facts need of the running daemon. Methods return at once."""

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that can answer."""
        ...

    def warm(self) -> tuple[str, ...]:
        """Ids of those in memory, the one used last first."""
        ...

    def token(self) -> Secret | None:
        """The device token, if an account is linked."""
        ...

    def counts(self) -> JobCounts:
        """Requests and tokens since the start."""
        ...

    def engine(self) -> EngineSnapshot:
        """The engine as of its last step."""
        ...

    def capabilities(self) -> PrivacyCapabilities:
        """What is done for privacy, measured at this moment."""
        ...


class ProviderFacts:
    """The link's source of facts."""

    def __init__(
        self,
        machine: Machine,
        activity: Activity,
        *,
        version: str,
        public_key: str,
        attestation: str | None = None,
        speeds: MeasuredSpeeds | None = None,
        unattested: Callable[[], object] = lambda: None,
    ) -> None:
        """Facts of `machine`. `unattested` is called when its attestation can be kept no longer."""
        self._machine = machine
        self._activity = activity
        self._version = version
        self._public_key = public_key
        self._attestation = attestation
        # Challenges want a signature in any case. Without an enclave it is one of a passing key,
        # which the coordinator has nothing to check with.
        self._signing_key: SigningKey = machine.enclave_key or SoftwareKey()
        self._speeds = speeds
        self._unattested = unattested
        self._metrics = SystemMetrics()
        self.linked = False
        """Whether the latest registration named an account, which is then credited."""

    def registration(self) -> tuple[Register, str | None]:
        """The register message, and the attestation if there is one, as raw JSON."""
        token = self._activity.token()
        self.linked = token is not None
        register = Register(
            hardware=self._machine.hardware,
            models=self._activity.models(),
            backend=BACKEND,
            version=self._version,
            public_key=self._public_key,
            encrypted_response_chunks=True,
            wallet_address=self._machine.wallet_address,
            auth_token=None if token is None else token.reveal(),
            python_hash=self._machine.python_hash,
            runtime_hash=self._machine.runtime_hash,
            privacy_capabilities=self._activity.capabilities(),
            machine_id=self._machine.machine_id,
            extensions=(ROUTING_STATUS,),
        )
        return register.model_copy(update=self._measured_speed(register.models)), self._attestation

    def _measured_speed(self, models: Iterable[ModelInfo]) -> dict[str, float]:
        """What was measured, and nothing in the place of what was not."""
        if self._speeds is None:
            return {}
        speed = self._speeds.registered(tuple(model.id for model in models))
        figures = {"prefill_tps": speed.prefill_tps, "decode_tps": speed.decode_tps}
        return {name: round(figure, 2) for name, figure in figures.items() if figure is not None}

    def heartbeat(self) -> Heartbeat:
        """What the machine does now."""
        counts = self._activity.counts()
        warm = self._activity.warm()
        return Heartbeat(
            status="serving" if counts.in_flight else "idle",
            active_model=warm[0] if warm else None,
            stats=HeartbeatStats(
                requests_served=counts.served, tokens_generated=counts.completion_tokens
            ),
            warm_models=warm,
            system_metrics=self._metrics,
            backend_capacity=capacity(self._activity.engine(), self._machine.hardware.memory_gb),
        )

    def answer(self, challenge: AttestationChallenge) -> AttestationResponse:
        """The answer to a challenge. A fact that could not be measured stays absent."""
        try:
            return self._signed_answer(challenge)
        except DarkbloomError as error:
            # The coordinator will not believe the answer below; the next registration, which this
            # asks for, is one without an attestation, under which it will.
            _log.error("the attestation is given up", why=str(error))
            self._attestation = None
            self._signing_key = SoftwareKey()
            self._unattested()
            return self._signed_answer(challenge)

    def _signed_answer(self, challenge: AttestationChallenge) -> AttestationResponse:
        posture = self._machine.posture
        response = AttestationResponse(
            nonce=challenge.nonce,
            signature=self._signing_key.sign(
                signed.challenge_message(challenge.nonce, challenge.timestamp)
            ),
            public_key=self._public_key,
            hypervisor_active=posture.hypervisor_reported,
            rdma_disabled=posture.rdma_disabled,
            sip_enabled=posture.sip_enabled,
            secure_boot_enabled=posture.secure_boot_enabled,
            python_hash=self._machine.python_hash,
            runtime_hash=self._machine.runtime_hash,
        )
        status = self._signing_key.sign(signed.status_message(challenge, response))
        return response.model_copy(update={"status_signature": status})

    async def keep_fresh(
        self,
        sample: Callable[[], SystemMetrics],
        every_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Measure the machine's load on a thread, again and again, until cancelled."""
        while True:
            try:
                self._metrics = await asyncio.to_thread(sample)
            except Exception as error:  # noqa: BLE001 — a figure for display must not end the daemon
                _log.warning("the machine's load was not measured", error=type(error).__name__)
            await sleep(every_s)


def capacity(engine: EngineSnapshot, memory_gib: int) -> BackendCapacity:
    """The engine's figures as a heartbeat carries them.

    The coordinator reckons in GiB (its tiers are those of `hardware.memory_gb`), MLX in GB.
    """

    def gib(figure_gb: float) -> float:
        return round(figure_gb * GB / GIB, 3)

    return BackendCapacity(
        slots=tuple(
            BackendSlot(
                model=slot.model,
                state=slot.state,
                num_running=slot.running,
                num_waiting=slot.waiting,
                active_tokens=slot.active_tokens,
                max_tokens_potential=slot.max_tokens_potential,
            )
            for slot in engine.slots
        ),
        # What is truly taken: kept prompts go as soon as a request needs their memory.
        gpu_memory_active_gb=gib(engine.memory.active_gb - engine.memory.prompt_cache_gb),
        gpu_memory_peak_gb=gib(engine.memory.peak_gb),
        gpu_memory_cache_gb=gib(engine.memory.cache_gb + engine.memory.prompt_cache_gb),
        total_memory_gb=float(memory_gib),
    )
