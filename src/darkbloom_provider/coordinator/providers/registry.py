"""The providers that are connected now, each with what it said, what was checked, and its work.

The hub alone changes a `Session`; everybody else reads a frozen `Candidate` or `SessionView`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Final, Protocol

from darkbloom_provider.coordinator.ledger.reservations import Serving
from darkbloom_provider.coordinator.providers.attempts import Attempt
from darkbloom_provider.coordinator.routing.choice import Candidate, Rules, Status
from darkbloom_provider.coordinator.routing.quotes import Quote, quote
from darkbloom_provider.coordinator.settings import TrustLevel
from darkbloom_provider.protocol.attestation import AttestationBlob
from darkbloom_provider.protocol.messages import (
    BackendCapacity,
    BackendSlot,
    CoordinatorMessage,
    Hardware,
    Heartbeat,
    HeartbeatStats,
    ModelInfo,
    PrivacyCapabilities,
    Register,
    RoutingStatus,
    SystemMetrics,
)

MAX_DECODE_TPS: Final = 500.0
MAX_PREFILL_TPS: Final = 5_000.0
MAX_BANDWIDTH_GBS: Final = 2_000.0
MAX_MEMORY_GB: Final = 1_024
MAX_TOKENS_POTENTIAL: Final = 1_000_000
_KEPT: Final = frozenset({"id", "wire", "attempts", "jobs_completed", "jobs_failed", "changed"})
"""What a connection keeps when it registers again."""
TOLD_NOTHING: Final = RoutingStatus(routable=True)


class Wire(Protocol):
    """One provider's websocket, as the rest of the coordinator sees it."""

    async def send(self, message: CoordinatorMessage, patience: float) -> bool:
        """Send one message; False if the connection is gone or stuck for `patience` seconds."""

    async def close(self, code: int, reason: str) -> None:
        """Close it. Never raises."""


class Attempts(dict[str, Attempt]):
    """What a session works on. It tells the session of every change."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def __setitem__(self, job_id: str, attempt: Attempt) -> None:
        super().__setitem__(job_id, attempt)
        self._session.touched()

    def end(self, job_id: str) -> Attempt | None:
        """Take out what it no longer works on; None if it was not there."""
        attempt = self.pop(job_id, None)
        if attempt is not None:
            self._session.touched()
        return attempt

    def clear(self) -> None:
        """Forget them all."""
        super().clear()
        self._session.touched()


@dataclass(slots=True, eq=False)
class Session:
    """One registration on one connection."""

    id: str
    wire: Wire
    version: str
    backend: str
    hardware: Hardware
    models: tuple[ModelInfo, ...]
    public_key: str
    """As registered, or empty if it was not usable."""
    encrypted_chunks: bool
    privacy: PrivacyCapabilities | None
    decode_tps: float
    prefill_tps: float
    registered_at: datetime
    heartbeat_at: float
    """Monotonic time of the last sign of life that counts."""
    offered: tuple[ModelInfo, ...] = ()
    """All that it registered with; `models` are those of them that are listed here."""
    account_id: str | None = None
    token_sha256: str | None = None
    """Which device token linked it, so that revoking the token unlinks it."""
    wallet_address: str | None = None
    machine_id: str | None = None
    trust: TrustLevel = "none"
    attestation: AttestationBlob | None = None
    attested: bool = False
    runtime_verified: bool = True
    outdated: bool = False
    """Whether its version is below the operator's minimum."""
    status: Status = "online"
    active_model: str | None = None
    warm_models: tuple[str, ...] = ()
    stats: HeartbeatStats = field(default_factory=HeartbeatStats)
    metrics: SystemMetrics = field(default_factory=SystemMetrics)
    capacity: BackendCapacity | None = None
    verified_at: float | None = None
    sip_verified: bool = False
    challenge_failures: int = 0
    challenge_problem: str | None = None
    extensions: frozenset[str] = frozenset()
    """The messages beyond the network's own that it understands."""
    judged: bool = False
    """Whether a challenge of this registration has ended, well or not."""
    told: RoutingStatus = TOLD_NOTHING
    """What it was last told of the reasons why it gets no work."""
    attempts: Attempts = field(init=False)
    """What it works on, by job id."""
    jobs_completed: int = 0
    jobs_failed: int = 0
    changed: Callable[[Session], None] | None = None
    """Called whenever anything of it changes, by the registry that it is in."""

    def __post_init__(self) -> None:
        self.attempts = Attempts(self)

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        self.touched()

    def touched(self) -> None:
        """Say that something has changed."""
        # Absent while the fields are being filled in.
        changed = getattr(self, "changed", None)
        if changed is not None:
            changed(self)

    @property
    def serial(self) -> str | None:
        """The attested serial number; it counts for pinning even if the blob was invalid."""
        return (self.attestation.serial_number or None) if self.attestation else None

    @property
    def serving(self) -> Serving:
        """Who is to be credited for a job that this session ends now."""
        return Serving(
            provider_id=self.id,
            provider_key=self.public_key,
            account_id=self.account_id,
            wallet_address=self.wallet_address,
            machine_id=self.machine_id,
        )

    def candidate(self) -> Candidate:
        """A snapshot for routing."""
        return Candidate(
            session_id=self.id,
            models=frozenset(model.id for model in self.models),
            status=self.status,
            trust=self.trust,
            runtime_verified=self.runtime_verified,
            public_key=self.public_key,
            backend=self.backend,
            encrypted_chunks=self.encrypted_chunks,
            sip_verified=self.sip_verified,
            privacy=self.privacy,
            verified_at=self.verified_at,
            challenge_problem=self.challenge_problem,
            outdated=self.outdated,
            in_flight=tuple(attempt.load for attempt in self.attempts.values()),
            capacity=self.capacity,
            metrics=self.metrics,
            memory_gb=self.hardware.memory_gb,
            bandwidth_gbs=self.hardware.memory_bandwidth_gbs,
            decode_tps=self.decode_tps,
            prefill_tps=self.prefill_tps,
            serial=self.serial,
        )

    def hear(self, heartbeat: Heartbeat, now: float) -> None:
        """Take in a heartbeat. What it leaves out keeps its last value."""
        self.heartbeat_at = now
        if heartbeat.status == "idle":
            self.status = "online"
        elif heartbeat.status == "serving":
            self.status = "serving"
        self.active_model = heartbeat.active_model or self.active_model
        self.warm_models = heartbeat.warm_models or self.warm_models
        self.stats = heartbeat.stats
        self.metrics = heartbeat.system_metrics.model_copy(
            update={
                "memory_pressure": clamp(heartbeat.system_metrics.memory_pressure, 1.0),
                "cpu_usage": clamp(heartbeat.system_metrics.cpu_usage, 1.0),
            }
        )
        if heartbeat.backend_capacity is not None:
            self.capacity = clamped_capacity(heartbeat.backend_capacity)

    def renew(self, fresh: Session) -> None:
        """Register again on the same connection: all is new but who it is and what it works on."""
        for each in fields(self):
            if each.name not in _KEPT:
                setattr(self, each.name, getattr(fresh, each.name))

    def distrust(self) -> None:
        """Give it no work until its next heartbeat, as the network does."""
        self.status = "untrusted"

    def unlink(self) -> None:
        """Credit nobody's account from now on; earnings go to the wallet again."""
        self.account_id = None
        self.token_sha256 = None


class Registry:
    """Sessions by id, and what each asks for each of its models, kept up to date."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._sessions: dict[str, Session] = {}
        self._rules = rules or Rules()
        self._quotes: dict[str, dict[str, Quote]] = {}
        """By model, then by session."""
        self._stale: dict[str, Session] = {}
        """Sessions that have changed since they were last asked."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __contains__(self, session: Session) -> bool:
        return self._sessions.get(session.id) is session

    def get(self, session_id: str) -> Session | None:
        """The session called `session_id`, if it is still here."""
        return self._sessions.get(session_id)

    def add(self, session: Session) -> None:
        """Take in a session."""
        self._sessions[session.id] = session
        session.changed = self._note

    def remove(self, session: Session) -> None:
        """Forget a session; again is harmless."""
        self._sessions.pop(session.id, None)
        session.changed = None
        self._stale.pop(session.id, None)
        self._forget(session.id)

    def quotes(self, model: str) -> Collection[Quote]:
        """What everybody asks for a model now who may serve it at all."""
        self.refresh()
        return self._quotes.get(model, {}).values()

    def refresh(self, *, beyond: int = 0) -> None:
        """Ask those that have changed, if they are more than `beyond`.

        To be called after changes too: no request must wait until everybody has been asked.
        """
        if len(self._stale) <= beyond:
            return
        stale, self._stale = self._stale, {}
        for session in stale.values():
            self._forget(session.id)
            candidate = session.candidate()
            for model in candidate.models:
                asked = quote(candidate, model, self._rules)
                if asked is not None:
                    self._quotes.setdefault(model, {})[session.id] = asked

    def _note(self, session: Session) -> None:
        self._stale[session.id] = session

    def _forget(self, session_id: str) -> None:
        for model, asked in list(self._quotes.items()):
            if asked.pop(session_id, None) is not None and not asked:
                del self._quotes[model]

    def candidates(self) -> list[Candidate]:
        """Snapshots of all, for routing."""
        return [session.candidate() for session in self]

    def unlink(self, token_sha256: str) -> int:
        """Unlink every session that a device token had linked; how many there were."""
        linked = [session for session in self if session.token_sha256 == token_sha256]
        for session in linked:
            session.unlink()
        return len(linked)


def clamp(value: float, highest: float) -> float:
    """`value` within 0 and `highest`: self-reported figures are not believed beyond reason."""
    return min(max(value, 0.0), highest)


def clamped_hardware(hardware: Hardware) -> Hardware:
    """Hardware with the figures that routing uses kept within reason."""
    return hardware.model_copy(
        update={
            "memory_gb": int(clamp(hardware.memory_gb, MAX_MEMORY_GB)),
            "memory_bandwidth_gbs": clamp(hardware.memory_bandwidth_gbs, MAX_BANDWIDTH_GBS),
        }
    )


def clamped_capacity(capacity: BackendCapacity) -> BackendCapacity:
    """Capacity with every figure kept within reason."""
    memory = ("gpu_memory_active_gb", "gpu_memory_peak_gb", "gpu_memory_cache_gb")
    update: dict[str, object] = {
        name: clamp(getattr(capacity, name), MAX_MEMORY_GB) for name in (*memory, "total_memory_gb")
    }
    return capacity.model_copy(
        update=update | {"slots": tuple(clamped_slot(slot) for slot in capacity.slots)}
    )


def clamped_slot(slot: BackendSlot) -> BackendSlot:
    """A slot whose counts are not negative and whose potential is not absurd."""
    return slot.model_copy(
        update={
            "num_running": max(slot.num_running, 0),
            "num_waiting": max(slot.num_waiting, 0),
            "max_tokens_potential": min(max(slot.max_tokens_potential, 0), MAX_TOKENS_POTENTIAL),
        }
    )


def speeds(register: Register) -> tuple[float, float]:
    """Decode and prefill figures in tokens per second; 0 where none was given."""
    return (
        clamp(register.decode_tps or 0.0, MAX_DECODE_TPS),
        clamp(register.prefill_tps or 0.0, MAX_PREFILL_TPS),
    )
