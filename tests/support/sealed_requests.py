"""Requests as a coordinator seals them for one provider."""

from __future__ import annotations

import json

from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import InferenceRequest
from support.network import chat


def request_for(
    provider_key: str, session: KeyPair, request_id: str, *, stream: bool = True
) -> InferenceRequest:
    """A chat request, sealed with the request's own key for the provider's."""
    body = json.dumps(chat(stream=stream)).encode()
    box = Channel(session, provider_key).payload(body)
    return InferenceRequest(request_id=request_id, encrypted_body=box)
