"""Every message of the provider websocket, field for field.

Conventions of this wire: a message is one JSON object with a string `type`; integer fields are
JSON integers (`64.0` is refused); `null` means the same as an absent key, so `None` is never sent;
unknown keys pass. Absent scalars count as zero values, as the network's coordinator decodes them.
Extensions of ours, which other implementations ignore: `Register.machine_id`,
`Register.extensions`, `InferenceResponseChunk.usage`, and the message `RoutingStatus`, which is
sent only to a provider that names it in its `extensions`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
RequestId = Annotated[str, Field(min_length=1)]

BACKEND = "inprocess-mlx"
"""The one back end that the network routes to."""


class WireModel(BaseModel):
    """Base of everything that travels: frozen, strict types, foreign keys ignored, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


# JSON has no tuples: arrays are taken as lists and kept as tuples.
_ARRAY = Field(strict=False)


class EncryptedPayload(WireModel):
    """A sealed box. `ciphertext` is base64 of nonce ‖ tag ‖ ciphertext."""

    ephemeral_public_key: str
    ciphertext: str


class Usage(WireModel):
    """Token counts of one request, as the engine counted them."""

    prompt_tokens: Annotated[Int64, Field(ge=0)] = 0
    completion_tokens: Annotated[Int64, Field(ge=0)] = 0


# ---------------------------------------------------------------- provider → coordinator


class CpuCores(WireModel):
    """Core counts."""

    total: Int64 = 0
    performance: Int64 = 0
    efficiency: Int64 = 0


class Hardware(WireModel):
    """What the machine is. `memory_gb` in GiB, bandwidth in GB/s."""

    machine_model: str = ""
    chip_name: str = ""
    chip_family: str = ""
    chip_tier: str = ""
    memory_gb: Int64 = 0
    memory_available_gb: float = 0
    cpu_cores: CpuCores = CpuCores()
    gpu_cores: Int64 = 0
    memory_bandwidth_gbs: float = 0


class ModelInfo(WireModel):
    """A model the provider can serve now."""

    id: str
    size_bytes: Int64 = 0
    model_type: str | None = None
    quantization: str | None = None
    weight_hash: str | None = None


class PrivacyCapabilities(WireModel):
    """How the provider guards the consumer's privacy. Each flag is measured, never a constant."""

    text_backend_inprocess: bool = False
    text_proxy_disabled: bool = False
    python_runtime_locked: bool = False
    dangerous_modules_blocked: bool = False
    sip_enabled: bool = False
    anti_debug_enabled: bool = False
    core_dumps_disabled: bool = False
    env_scrubbed: bool = False
    hypervisor_active: bool = False


class Register(WireModel):
    """First message on each connection."""

    type: Literal["register"] = "register"
    hardware: Hardware = Hardware()
    models: Annotated[tuple[ModelInfo, ...], _ARRAY] = ()
    backend: str = ""
    version: str | None = None
    public_key: str = ""
    encrypted_response_chunks: bool = False
    wallet_address: str | None = None
    attestation: Annotated[str | None, Field(repr=False)] = None
    """The signed attestation as raw JSON text: what is signed are these very bytes."""
    prefill_tps: float | None = None
    decode_tps: float | None = None
    auth_token: Annotated[str | None, Field(repr=False)] = None
    python_hash: str | None = None
    runtime_hash: str | None = None
    template_hashes: dict[str, str] | None = None
    privacy_capabilities: PrivacyCapabilities | None = None
    machine_id: Annotated[str | None, Field(repr=False)] = None
    """Extension: 32 hex digits, the machine's identity where there is no attestation."""
    extensions: Annotated[tuple[str, ...] | None, _ARRAY] = None
    """Extension: the messages beyond the network's own that this provider understands."""


class HeartbeatStats(WireModel):
    """Counters since the start of the provider's process."""

    requests_served: Int64 = 0
    tokens_generated: Int64 = 0


class SystemMetrics(WireModel):
    """How busy the machine is. Fractions are 0-1."""

    memory_pressure: float = 0
    cpu_usage: float = 0
    thermal_state: str = "nominal"


class BackendSlot(WireModel):
    """One model's place in the engine."""

    model: str
    state: str = ""
    num_running: Int64 = 0
    num_waiting: Int64 = 0
    active_tokens: Int64 = 0
    max_tokens_potential: Int64 = 0


class BackendCapacity(WireModel):
    """What the engine holds. Memory in GB."""

    slots: Annotated[tuple[BackendSlot, ...], _ARRAY] = ()
    gpu_memory_active_gb: float = 0
    gpu_memory_peak_gb: float = 0
    gpu_memory_cache_gb: float = 0
    total_memory_gb: float = 0


class Heartbeat(WireModel):
    """Sent at once after `register`, then every few seconds."""

    type: Literal["heartbeat"] = "heartbeat"
    status: str = ""
    active_model: str | None = None
    stats: HeartbeatStats = HeartbeatStats()
    warm_models: Annotated[tuple[str, ...], _ARRAY] = ()
    system_metrics: SystemMetrics = SystemMetrics()
    backend_capacity: BackendCapacity | None = None


class InferenceAccepted(WireModel):
    """The request has been taken; the coordinator now waits longer for the first chunk."""

    type: Literal["inference_accepted"] = "inference_accepted"
    request_id: RequestId


class InferenceResponseChunk(WireModel):
    """One sealed piece of the answer."""

    type: Literal["inference_response_chunk"] = "inference_response_chunk"
    request_id: RequestId
    data: str | None = None
    """Plaintext of an older protocol. Must be absent; here so that it can be refused."""
    encrypted_data: EncryptedPayload | None = None
    usage: Usage | None = None
    """Extension: tokens so far, in clear as in `inference_complete`."""


class InferenceComplete(WireModel):
    """The request ended well. Bills it."""

    type: Literal["inference_complete"] = "inference_complete"
    request_id: RequestId
    usage: Usage = Usage()
    se_signature: str | None = None
    response_hash: str | None = None


class InferenceError(WireModel):
    """The request failed. `error` reaches the consumer: no content, no paths."""

    type: Literal["inference_error"] = "inference_error"
    request_id: RequestId
    error: str = ""
    status_code: Int64 = 0


class AttestationResponse(WireModel):
    """Answer to a challenge. An absent flag is unknown, an explicit false is a statement."""

    type: Literal["attestation_response"] = "attestation_response"
    nonce: str = ""
    signature: str = ""
    status_signature: str | None = None
    public_key: str = ""
    hypervisor_active: bool | None = None
    rdma_disabled: bool | None = None
    sip_enabled: bool | None = None
    secure_boot_enabled: bool | None = None
    binary_hash: str | None = None
    active_model_hash: str | None = None
    python_hash: str | None = None
    runtime_hash: str | None = None
    template_hashes: dict[str, str] | None = None
    model_hashes: dict[str, str] | None = None


# ---------------------------------------------------------------- coordinator → provider


class InferenceRequest(WireModel):
    """Work. The body is sealed for the provider's registered key."""

    type: Literal["inference_request"] = "inference_request"
    request_id: RequestId
    encrypted_body: EncryptedPayload | None = None


class Cancel(WireModel):
    """No one listens for this request any more; also sent after every finished one."""

    type: Literal["cancel"] = "cancel"
    request_id: RequestId


class AttestationChallenge(WireModel):
    """`nonce` and `timestamp` are opaque text; the signature covers their concatenation."""

    type: Literal["attestation_challenge"] = "attestation_challenge"
    nonce: str = ""
    timestamp: str = ""


class RuntimeMismatch(WireModel):
    """One component whose hash the operator does not list."""

    component: str = ""
    expected: str = ""
    got: str = ""


class RuntimeStatus(WireModel):
    """Sent when the provider's runtime hashes do not match the operator's list."""

    type: Literal["runtime_status"] = "runtime_status"
    verified: bool = False
    mismatches: Annotated[tuple[RuntimeMismatch, ...], _ARRAY] = ()


ROUTING_STATUS = "routing_status"
"""The name of the extension that `RoutingStatus` is, also in `Register.extensions`."""


class RoutingReason(WireModel):
    """One thing that keeps work from a provider."""

    code: str = ""
    """Which one; stays the same while figures in the text change."""
    what: str = ""
    next_step: str = ""
    """What its owner can do."""
    model: str | None = None
    """The model it keeps work for from the provider; absent if it is all work."""


class RoutingStatus(WireModel):
    """Extension: why a provider gets no work, sent whenever the reasons have changed."""

    type: Literal["routing_status"] = "routing_status"
    routable: bool = False
    """Whether any work can come."""
    reasons: Annotated[tuple[RoutingReason, ...], _ARRAY] = ()


ProviderMessage = (
    Register
    | Heartbeat
    | InferenceAccepted
    | InferenceResponseChunk
    | InferenceComplete
    | InferenceError
    | AttestationResponse
)
"""Everything a provider sends."""

CoordinatorMessage = (
    InferenceRequest | Cancel | AttestationChallenge | RuntimeStatus | RoutingStatus
)
"""Everything a coordinator sends."""
