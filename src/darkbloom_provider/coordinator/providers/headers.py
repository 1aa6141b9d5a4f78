"""What a consumer is told of the provider that serves it."""

from __future__ import annotations

import re
from typing import Final

from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.providers.waiting import Placement

_UNSAFE_IN_HEADER: Final = re.compile(r"[^\x20-\x7e]")
_HEADER_LENGTH: Final = 200


def provider_headers(placement: Placement) -> dict[str, str]:
    """Who serves this request, as far as it is known; foreign text is made safe for a header."""
    session: Session = placement.session
    headers = {
        "X-Inference-Job-ID": placement.attempt.job_id,
        "X-Provider-Encrypted": "true",
        "X-Provider-Attested": "true" if session.attested else "false",
        "X-Provider-Trust-Level": session.trust,
        "X-Provider-Id": session.id,
        "X-Provider-Chip": session.hardware.chip_name,
        "X-Provider-Model": session.hardware.machine_model,
    }
    if session.attested and session.attestation is not None:
        headers["X-Provider-Serial"] = session.attestation.serial_number
        headers["X-Provider-Secure-Enclave"] = "true"
        headers["X-Attestation-Se-Public-Key"] = session.attestation.public_key
    return {
        name: _UNSAFE_IN_HEADER.sub("?", value)[:_HEADER_LENGTH].strip()
        for name, value in headers.items()
    }
