"""Signed answers to challenges, held to the protocol's vectors."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from darkbloom_provider.coordinator.providers.challenges import (
    Verdict,
    is_older,
    judge,
    new_challenge,
)
from darkbloom_provider.protocol.messages import AttestationChallenge, AttestationResponse
from support.recordings import vectors

KNOWN = vectors()
CHALLENGE = AttestationChallenge.model_validate(KNOWN["challenge"]["challenge"])


def verdict(key: str | None = KNOWN["p256"]["public_xy_b64"], **changes: Any) -> Verdict:
    answer = AttestationResponse.model_validate(KNOWN["attestation_response"] | changes)
    registered = KNOWN["attestation_response"]["public_key"]
    return judge(CHALLENGE, answer, registered_key=registered, attestation_key=key)


def test_the_vectors_answer_passes() -> None:
    assert verdict().problem is None
    assert verdict(KNOWN["p256"]["public_uncompressed_b64"]).problem is None


def test_a_signature_of_something_else_fails() -> None:
    other = KNOWN["status"]["status_signature_b64"]
    assert verdict(signature=other).problem == "the signature is wrong"


def test_a_status_that_was_changed_after_signing_fails() -> None:
    assert verdict(binary_hash="00").problem == "the status signature is wrong"


def test_a_missing_status_signature_passes() -> None:
    assert verdict(status_signature="").problem is None


def test_without_an_attested_key_any_signature_passes_but_none_does_not() -> None:
    assert verdict(None, signature="x", status_signature="y").problem is None
    assert verdict(None, signature="").problem == "the answer is not signed"


@pytest.mark.parametrize(
    ("changes", "untrusted"),
    [({"sip_enabled": False}, True), ({"rdma_disabled": False}, True)],
)
def test_an_admitted_bad_state_is_untrusted_at_once(
    changes: dict[str, Any], *, untrusted: bool
) -> None:
    assert verdict(None, **changes).untrusted is untrusted


def test_a_program_or_weights_that_are_not_listed_are_untrusted_at_once() -> None:
    def contents(binary: str = "", model: str = "", **listed: Any) -> Verdict:
        answer = AttestationResponse.model_validate(
            KNOWN["attestation_response"]
            | {"binary_hash": binary, "active_model_hash": model, "status_signature": ""}
        )
        return judge(
            CHALLENGE, answer, registered_key=answer.public_key, attestation_key=None, **listed
        )

    assert contents("x", accepted_binaries={"y"}).untrusted
    assert contents(model="x", weights="y").untrusted
    # What is not reported, or not listed, is not checked.
    for passes in (
        contents(accepted_binaries={"y"}),
        contents("x"),
        contents("y", accepted_binaries={"x", "y"}),
        contents(weights="y"),
        contents(model="y", weights="y"),
    ):
        assert passes.problem is None


@pytest.mark.parametrize(
    ("version", "minimum", "older"),
    [
        ("0.4.6", "0.4.7", True),
        ("0.4.7", "0.4.7", False),
        ("0.3.11-rc1", "0.3.11", False),
        ("0.10", "0.9.9", False),
        ("1", "1.0.0", False),
        ("v1.0", "0.1", True),
        ("", "9", False),
        ("0.1", None, False),
    ],
)
def test_versions_are_compared_part_by_part(
    version: str, minimum: str | None, *, older: bool
) -> None:
    assert is_older(version, minimum) is older


def test_the_timestamp_is_utc_in_whole_seconds() -> None:
    local = datetime(2026, 1, 2, 5, 4, 5, 999, tzinfo=timezone(timedelta(hours=2)))
    challenge = new_challenge(b"\0" * 32, local)
    assert challenge.timestamp == "2026-01-02T03:04:05Z"
    assert new_challenge(b"\0" * 32, datetime.now(UTC)).nonce == "A" * 43 + "="
