"""Endpoints about the network as it is now: who is connected, and which models can be asked."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from darkbloom_provider.coordinator.providers.hub import Hub
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.rest.endpoints import Endpoint
from darkbloom_provider.coordinator.rest.guards import ANY, ANYONE
from darkbloom_provider.coordinator.rest.replies import json_reply
from darkbloom_provider.coordinator.rest.shapes import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    TEXT,
    Operation,
    array,
    mapping,
    one_of,
    optional,
    record,
)
from darkbloom_provider.coordinator.routing.choice import trustworthy
from darkbloom_provider.coordinator.services import Services
from darkbloom_provider.coordinator.settings import TRUST_RANK
from darkbloom_provider.protocol.attestation import AttestationBlob

EXTENSIONS: Final = ("device-token-read", "device-revoke", "earnings-filter")
"""What this coordinator offers beyond the existing network; clients look for these names."""

_NO_BLOB: Final = AttestationBlob.model_validate({})


def endpoints(services: Services, hub: Hub) -> list[Endpoint]:
    """The endpoints, bound to the coordinator's parts."""
    network = _Network(services, hub)
    trust = one_of(*TRUST_RANK)
    return [
        Endpoint(
            "GET",
            "/health",
            network.health,
            ANYONE,
            Operation(
                "Whether it runs, and how many providers are connected",
                record(status=one_of("ok"), providers=COUNT, extensions=array(TEXT)),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/models",
            network.models,
            ANY,
            Operation(
                "The models that can be asked now",
                record(
                    object=one_of("list"),
                    data=array(
                        record(
                            id=TEXT, object=TEXT, created=COUNT, owned_by=TEXT, metadata=ANYTHING
                        )
                    ),
                ),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/providers/attestation",
            network.attestation,
            ANYONE,
            Operation(
                "What each connected provider has proved",
                record(
                    providers=array(record(provider_id=TEXT, trust_level=trust, status=TEXT)),
                    apple_root_ca_url=TEXT,
                    apple_enterprise_root_ca=TEXT,
                    verification_instructions=TEXT,
                ),
            ),
        ),
        Endpoint(
            "GET",
            "/v1/runtime/manifest",
            network.manifest,
            ANYONE,
            Operation(
                "The runtimes that providers must have, if the operator lists any",
                record(
                    configured=BOOLEAN,
                    python_hashes=optional(mapping(BOOLEAN)),
                    runtime_hashes=optional(mapping(BOOLEAN)),
                    template_hashes=optional(mapping(TEXT)),
                ),
            ),
        ),
    ]


class _Network:
    def __init__(self, services: Services, hub: Hub) -> None:
        self._services = services
        self._hub = hub

    async def health(self, _request: Request) -> Response:
        return json_reply(
            {"status": "ok", "providers": len(self._hub.registry), "extensions": EXTENSIONS}
        )

    async def models(self, _request: Request) -> Response:
        entries = self._services.catalogue.entries
        listed = {entry.id: entry.display_name for entry in entries if entry.active}
        serving: dict[str, list[Session]] = defaultdict(list)
        for session in self._hub.registry:
            if trustworthy(session.candidate(), self._hub.rules):
                for model in session.models:
                    serving[model.id].append(session)
        data = [
            _model(model_id, listed.get(model_id), sessions)
            for model_id, sessions in sorted(serving.items())
        ]
        return json_reply({"object": "list", "data": data})

    async def attestation(self, _request: Request) -> Response:
        return json_reply(
            {
                "providers": [_attested(session) for session in self._hub.registry],
                "apple_root_ca_url": "https://www.apple.com/certificateauthority/",
                "apple_enterprise_root_ca": "Apple Enterprise Attestation Root CA",
                "verification_instructions": (
                    "Check the signature of each machine's attestation with its se_public_key."
                ),
            }
        )

    async def manifest(self, _request: Request) -> Response:
        policy = self._hub.policy
        if not (
            policy.accepted_python_hashes
            or policy.accepted_runtime_hashes
            or policy.accepted_template_hashes
        ):
            return json_reply({"configured": False})
        return json_reply(
            {
                "configured": True,
                "python_hashes": dict.fromkeys(sorted(policy.accepted_python_hashes), True),
                "runtime_hashes": dict.fromkeys(sorted(policy.accepted_runtime_hashes), True),
                "template_hashes": dict(sorted(policy.accepted_template_hashes.items())),
            }
        )


def _model(model_id: str, display_name: str | None, sessions: list[Session]) -> dict[str, Any]:
    attested = [session for session in sessions if session.attested]
    offered = next(model for model in sessions[0].models if model.id == model_id)
    metadata: dict[str, Any] = {
        "model_type": offered.model_type or "text",
        "quantization": offered.quantization or "",
        "provider_count": len(sessions),
        "attested_providers": len(attested),
        "trust_level": max((s.trust for s in sessions), key=lambda trust: TRUST_RANK[trust]),
    }
    if display_name:
        metadata["display_name"] = display_name
    if attested:
        metadata["attestation"] = {
            "secure_enclave": True,
            "sip_enabled": all(session.sip_verified for session in attested),
            "secure_boot": True,
        }
    return {
        "id": model_id,
        "object": "model",
        "created": 0,
        "owned_by": "eigeninference",
        "metadata": metadata,
    }


def _attested(session: Session) -> dict[str, Any]:
    # An invalid attestation proves nothing, so nothing of it is repeated as a fact.
    blob = session.attestation if session.attested and session.attestation else _NO_BLOB
    hardware = session.hardware
    return {
        "provider_id": session.id,
        "chip_name": hardware.chip_name,
        "hardware_model": hardware.machine_model,
        "serial_number": blob.serial_number,
        "trust_level": session.trust,
        "status": session.status,
        "memory_gb": hardware.memory_gb,
        "gpu_cores": hardware.gpu_cores,
        "models": [model.id for model in session.models],
        "secure_enclave": blob.secure_enclave_available,
        "sip_enabled": session.sip_verified,
        "secure_boot_enabled": blob.secure_boot_enabled,
        "authenticated_root_enabled": blob.authenticated_root_enabled,
        "se_public_key": blob.public_key,
        "mdm_verified": session.trust == "hardware",
        "acme_verified": False,
        "mda_verified": False,
        **({"system_volume_hash": blob.system_volume_hash} if blob.system_volume_hash else {}),
    }
