from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.protocol import codec
from darkbloom_provider.protocol.messages import (
    AttestationResponse,
    Cancel,
    EncryptedPayload,
    Heartbeat,
    InferenceComplete,
    InferenceError,
    InferenceRequest,
    InferenceResponseChunk,
    Register,
    SystemMetrics,
    Usage,
)
from support.recordings import SESSIONS, frames, vectors


@pytest.mark.parametrize("name", SESSIONS)
def test_every_frame_of_the_recorded_sessions_is_understood(name: str) -> None:
    seen: set[str] = set()
    for line in frames(name):
        text = line.get("wire") or json.dumps(line["frame"])
        if line["dir"] == "send":
            seen.add(codec.decode_from_provider(text).type)
        else:
            seen.add(codec.decode_from_coordinator(text).type)
    assert {"register", "attestation_challenge"} <= seen


@pytest.mark.parametrize("name", SESSIONS)
def test_nothing_recorded_is_lost_by_decoding_and_encoding(name: str) -> None:
    for line in frames(name):
        if line["dir"] != "send":
            continue
        frame = {k: v for k, v in line["frame"].items() if v is not None}
        again = json.loads(codec.encode(codec.decode_from_provider(json.dumps(line["frame"]))))
        assert frame.items() <= again.items() or _without_defaults(frame) == _without_defaults(
            again
        )


def _without_defaults(value: Any) -> Any:
    """Objects without their empty members, which a typed message always spells out."""
    if isinstance(value, dict):
        cleaned = {k: _without_defaults(v) for k, v in value.items()}
        return {k: v for k, v in cleaned.items() if v not in (None, {}, [], "", 0)}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value


def test_the_attestation_travels_byte_for_byte() -> None:
    text = '{ "attestation" : {"b":1, "a":"\\/"},"signature":"x" }'
    frame = codec.encode(Register(public_key="k", attestation=text))
    assert text in frame
    decoded = codec.decode_from_provider(frame)
    assert isinstance(decoded, Register)
    assert decoded.attestation == text


def test_the_vector_attestation_keeps_its_bytes_inside_any_frame() -> None:
    text = vectors()["attestation_text"]
    spaced = f'{{"type": "register",\n "attestation":  {text} , "backend": "inprocess-mlx"}}'
    decoded = codec.decode_from_provider(spaced)
    assert isinstance(decoded, Register)
    assert decoded.attestation == text
    assert decoded.backend == "inprocess-mlx"


def test_none_is_never_sent_and_an_explicit_false_is() -> None:
    response = AttestationResponse(nonce="n", signature="s", public_key="k", rdma_disabled=False)
    document = json.loads(codec.encode(response))
    assert document["rdma_disabled"] is False
    assert "sip_enabled" not in document


def test_absent_null_and_false_are_told_apart_where_it_matters() -> None:
    def sip(text: str) -> bool | None:
        message = codec.decode_from_provider(f'{{"type":"attestation_response"{text}}}')
        assert isinstance(message, AttestationResponse)
        return message.sip_enabled

    assert sip("") is None
    assert sip(',"sip_enabled":null') is None
    assert sip(',"sip_enabled":false') is False


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"register","hardware":{"memory_gb":64.0}}',
        '{"type":"heartbeat","stats":{"requests_served":1e3}}',
        '{"type":"inference_complete","request_id":"a","usage":{"prompt_tokens":"1"}}',
        '{"type":"inference_complete","request_id":"a","usage":{"prompt_tokens":-1}}',
        '{"type":"inference_error","request_id":"a","status_code":99999999999999999999}',
        '{"type":"inference_accepted"}',
        '{"type":"inference_accepted","request_id":""}',
        '{"type":"heartbeat","system_metrics":{"cpu_usage":NaN}}',
        '{"type":"heartbeat","system_metrics":{"cpu_usage":1e999}}',
        '{"type":"register","models":{}}',
        '{"type":"register","encrypted_response_chunks":"true"}',
        "[]",
        "",
        "{",
        '"register"',
        '{"type":"register"} x',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"type":"heartbeat","active_model":"\\ud800"}',
        '{"type":"heartbeat","stats":{"requests_served":' + "9" * 5000 + "}}",
    ],
)
def test_a_malformed_frame_is_a_typed_error(frame: str) -> None:
    with pytest.raises(codec.MalformedFrameError):
        codec.decode_from_provider(frame)


@pytest.mark.parametrize("frame", ['{"type":"drain"}', "{}", '{"type":7}', '{"type":null}'])
def test_an_unknown_type_is_named(frame: str) -> None:
    with pytest.raises(codec.UnknownMessageError):
        codec.decode_from_coordinator(frame)


def test_bytes_that_are_not_utf8_are_malformed() -> None:
    with pytest.raises(codec.MalformedFrameError):
        codec.decode_from_coordinator(b'{"type":"cancel","request_id":"\xff"}')


def test_foreign_fields_pass() -> None:
    frame = '{"type":"cancel","request_id":"a","reason":"later version"}'
    assert codec.decode_from_coordinator(frame) == Cancel(request_id="a")


def test_not_a_number_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="finite"):
        SystemMetrics(cpu_usage=float("nan"))


def test_integers_are_written_as_json_integers() -> None:
    text = codec.encode(InferenceComplete(request_id="a", usage=Usage(prompt_tokens=3)))
    assert '"prompt_tokens":3,' in text


def test_credentials_and_attestation_do_not_show_in_a_representation() -> None:
    register = Register(auth_token="eigeninference-pt-1", attestation="{}", machine_id="00ff")
    assert "eigeninference" not in repr(register)
    assert "00ff" not in repr(register)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
kinds = st.sampled_from(
    [
        "register",
        "heartbeat",
        "inference_complete",
        "cancel",
        "inference_request",
        "attestation_response",
    ]
)
keys = st.sampled_from(
    ["hardware", "models", "usage", "request_id", "encrypted_body", "stats", "attestation", "nonce"]
)


@given(kinds, st.dictionaries(keys, json_values, max_size=4))
def test_foreign_frames_decode_or_raise_a_frame_error(kind: str, rest: dict[str, Any]) -> None:
    frame = json.dumps({"type": kind, **rest})
    for decode in (codec.decode_from_provider, codec.decode_from_coordinator):
        with contextlib.suppress(codec.FrameError):
            decode(frame)


@given(st.binary(max_size=200))
def test_foreign_bytes_decode_or_raise_a_frame_error(frame: bytes) -> None:
    for decode in (codec.decode_from_provider, codec.decode_from_coordinator):
        with contextlib.suppress(codec.FrameError):
            decode(frame)


@given(st.dictionaries(st.text(max_size=6), json_values, min_size=1, max_size=5), st.booleans())
def test_a_raw_member_is_the_exact_text_of_its_value(
    document: dict[str, Any], spaced: bool
) -> None:
    document = json.loads(json.dumps(document).replace("NaN", "0").replace("Infinity", "0"))
    text = json.dumps(document, indent=2 if spaced else None)
    for key, value in document.items():
        raw = codec.raw_member(text, key)
        assert raw is not None
        assert raw in text
        assert json.loads(raw) == value


payloads = st.builds(EncryptedPayload, ephemeral_public_key=st.text(), ciphertext=st.text())


@given(
    st.one_of(
        st.builds(InferenceRequest, request_id=st.text(min_size=1), encrypted_body=payloads),
        st.builds(Cancel, request_id=st.text(min_size=1)),
    )
)
def test_what_a_coordinator_says_arrives_as_it_was_said(message: InferenceRequest | Cancel) -> None:
    assert codec.decode_from_coordinator(codec.encode(message)) == message


@given(
    st.one_of(
        st.builds(
            InferenceResponseChunk,
            request_id=st.text(min_size=1),
            encrypted_data=payloads,
            data=st.none(),
        ),
        st.builds(InferenceError, request_id=st.text(min_size=1)),
        st.builds(Heartbeat),
    )
)
def test_what_a_provider_says_arrives_as_it_was_said(
    message: InferenceResponseChunk | InferenceError | Heartbeat,
) -> None:
    assert codec.decode_from_provider(codec.encode(message)) == message
