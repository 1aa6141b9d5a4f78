from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from darkbloom_provider.protocol import codec, signed
from darkbloom_provider.protocol.attestation import AttestationBlob, attest, judge
from darkbloom_provider.protocol.messages import AttestationChallenge, AttestationResponse
from support.recordings import frames, vectors

VECTORS = vectors()
P256 = VECTORS["p256"]
KEY = ec.derive_private_key(int(P256["private_scalar_hex"], 16), ec.SECP256R1())
PUBLIC = P256["public_xy_b64"]
PROVIDER_KEY = VECTORS["provider_key"]["provider_public_b64"]


class VectorKey:
    """The vectors' key, with the deterministic signatures (RFC 6979) they were made with."""

    public_text = PUBLIC

    def sign(self, message: bytes) -> str:
        scheme = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        return base64.b64encode(KEY.sign(message, scheme)).decode()


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


# ---------------------------------------------------------------- made here, byte for byte

GOLDEN_SHA256 = "26def3f010282923d754b72402cdfb6ac6892a4a9eb7d0b3b4515937252a8a34"
"""Of the complete value of `register.attestation` in `encryption.md` section 6.4."""


def test_an_attestation_made_here_is_the_vector_byte_for_byte() -> None:
    blob = AttestationBlob.model_validate(json.loads(VECTORS["attestation_blob"]["blob_utf8"]))
    text = attest(blob, VectorKey())
    assert text == VECTORS["attestation_text"]
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN_SHA256


def test_names_that_go_escapes_are_signed_as_they_are_sent() -> None:
    blob = AttestationBlob.model_validate({"chipName": "<a>&\u2028 é", "publicKey": PUBLIC})
    text = attest(blob, VectorKey())
    assert '"chipName":"\\u003ca\\u003e\\u0026\\u2028 é"' in text
    raw = codec.raw_member(text, "attestation")
    assert raw is not None
    assert signed.verify(PUBLIC, json.loads(text)["signature"], raw.encode())


def test_both_challenge_signatures_made_here_are_the_vectors() -> None:
    challenge = _vector_challenge()
    message = signed.challenge_message(challenge.nonce, challenge.timestamp)
    assert VectorKey().sign(message) == VECTORS["challenge"]["signature_b64"]
    status = signed.status_message(challenge, _vector_response())
    assert VectorKey().sign(status) == VECTORS["status"]["status_signature_b64"]


def test_the_answers_signature_made_here_is_the_vector() -> None:
    digest = VECTORS["response"]["response_hash"]
    assert VectorKey().sign(digest.encode()) == VECTORS["response"]["se_signature"]


def test_a_software_key_shows_its_private_half_nowhere() -> None:
    key = signed.SoftwareKey()
    assert "private" not in repr(key)
    assert signed.verify(key.public_text, key.sign(b"m"), b"m")
