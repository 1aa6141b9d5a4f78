from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from darkbloom_provider.protocol import codec, signed
from darkbloom_provider.protocol.attestation import judge
from darkbloom_provider.protocol.messages import AttestationChallenge, AttestationResponse
from support.recordings import frames, vectors

VECTORS = vectors()
P256 = VECTORS["p256"]
KEY = ec.derive_private_key(int(P256["private_scalar_hex"], 16), ec.SECP256R1())
PUBLIC = P256["public_xy_b64"]
PROVIDER_KEY = VECTORS["provider_key"]["provider_public_b64"]


def _vector_challenge() -> AttestationChallenge:
    return AttestationChallenge.model_validate(VECTORS["challenge"]["challenge"])


def _vector_response() -> AttestationResponse:
    message = codec.decode_from_provider(json.dumps(VECTORS["attestation_response"]))
    assert isinstance(message, AttestationResponse)
    return message


def test_public_keys_are_the_raw_point() -> None:
    assert signed.public_text(KEY.public_key()) == PUBLIC


def test_the_challenge_message_is_the_two_texts_joined() -> None:
    challenge = _vector_challenge()
    message = signed.challenge_message(challenge.nonce, challenge.timestamp)
    assert message.decode() == VECTORS["challenge"]["message_utf8"]
    for public in (PUBLIC, P256["public_uncompressed_b64"]):
        assert signed.verify(public, VECTORS["challenge"]["signature_b64"], message)


def test_the_status_message_is_canonical_with_gos_escapes() -> None:
    message = signed.status_message(_vector_challenge(), _vector_response())
    assert message == base64.b64decode(VECTORS["status"]["canonical_b64"])
    assert signed.verify(PUBLIC, VECTORS["status"]["status_signature_b64"], message)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (AttestationResponse(), '{"nonce":"ñön¢é-π","timestamp":"t"}'),
        (
            AttestationResponse(sip_enabled=False),
            '{"nonce":"ñön¢é-π","sip_enabled":false,"timestamp":"t"}',
        ),
        (
            AttestationResponse(python_hash="", template_hashes={}),
            '{"nonce":"ñön¢é-π","timestamp":"t"}',
        ),
    ],
)
def test_absent_and_empty_fields_are_not_signed_but_false_is(
    response: AttestationResponse, expected: str
) -> None:
    challenge = AttestationChallenge(nonce="ñön¢é-π", timestamp="t")
    assert signed.status_message(challenge, response).decode() == expected


def test_the_response_hash_matches_its_vector() -> None:
    vector = VECTORS["response"]
    digest = signed.response_hash(vector["request_id"], vector["completion_tokens"], vector["body"])
    assert digest == vector["response_hash"]
    assert signed.verify(PUBLIC, vector["se_signature"], digest.encode())


def test_a_signature_made_here_verifies_and_an_altered_one_does_not() -> None:
    signature = signed.sign(KEY, b"message")
    assert signed.verify(PUBLIC, signature, b"message")
    assert not signed.verify(PUBLIC, signature, b"massage")


@pytest.mark.parametrize(("public", "signature"), [("", ""), ("AAAA", "AAAA"), (PUBLIC, "%%%")])
def test_malformed_keys_and_signatures_are_wrong_not_errors(public: str, signature: str) -> None:
    assert not signed.verify(public, signature, b"message")


def test_the_vector_attestation_is_valid_over_its_own_bytes() -> None:
    judgement = judge(VECTORS["attestation_text"], PROVIDER_KEY)
    assert judgement.valid
    assert judgement.blob is not None
    assert judgement.blob.serial_number == "TESTSERIAL01"


def test_the_same_content_with_other_bytes_is_invalid() -> None:
    respelled = json.dumps(json.loads(VECTORS["attestation_text"]))
    assert judge(respelled, PROVIDER_KEY).problem == "its signature is wrong"


def test_an_attestation_bound_to_another_key_is_invalid() -> None:
    assert judge(VECTORS["attestation_text"], "another").problem is not None


@pytest.mark.parametrize("text", ["{}", "[]", "7", "", '{"attestation":7,"signature":"x"}', "{"])
def test_an_unreadable_attestation_is_judged_not_raised(text: str) -> None:
    assert not judge(text, PROVIDER_KEY).valid


def test_a_recorded_attested_session_verifies() -> None:
    lines = frames("ws-attested-selfsigned")
    register = next(line for line in lines if line["frame"]["type"] == "register")
    message = codec.decode_from_provider(register["wire"])
    assert message.type == "register"
    assert message.attestation is not None
    assert judge(message.attestation, message.public_key).valid
