from __future__ import annotations

import sys
from types import ModuleType

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from darkbloom_provider.host.enclave import EnclaveError, EnclaveKey, new_key
from darkbloom_provider.protocol import signed
from support.fake_security import FakeSecurity, SystemRefusal

# https://github.com/facebookincubator/sks/issues/5 and flutter_secure_storage/issues/1104
MISSING_ENTITLEMENT = SystemRefusal(-34018, "A required entitlement isn't present.")


def made(security: FakeSecurity) -> EnclaveKey:
    return new_key("darwin", security.load)


def test_the_enclaves_key_signs_what_its_public_half_verifies() -> None:
    key = made(FakeSecurity())
    assert signed.verify(key.public_text, key.sign(b"message"), b"message")
    assert not signed.verify(key.public_text, key.sign(b"message"), b"massage")


def test_the_key_is_asked_for_in_the_enclave_for_this_start_only() -> None:
    security = FakeSecurity()
    made(security)
    (parameters,) = security.asked["create"]
    assert parameters == {
        "type": "73",
        "bsiz": 256,
        "tkid": "com.apple.setoken",
        "private": {"perm": False, "accc": "access control"},
    }
    assert security.asked["access"] == ("cku", 1 << 30)
    assert security.asked["sign"] == ("algid:sign:ECDSA:message-X962:SHA256",)


def test_two_starts_have_two_keys() -> None:
    security = FakeSecurity()
    assert made(security).public_text != made(security).public_text


@pytest.mark.parametrize("call", ["access", "create", "public", "sign"])
def test_a_refusal_of_the_system_is_no_key_and_says_why(call: str) -> None:
    with pytest.raises(EnclaveError) as refused:
        made(FakeSecurity(**{call: MISSING_ENTITLEMENT}))
    assert "-34018" in str(refused.value)
    assert "signed application" in str(refused.value)


def test_a_refusal_without_a_reason_is_no_key_either() -> None:
    with pytest.raises(EnclaveError, match="makes no key"):
        made(FakeSecurity(create=None))


def test_a_key_whose_signature_does_not_verify_is_none() -> None:
    security = FakeSecurity()
    security.other_key_signs = True
    with pytest.raises(EnclaveError, match="does not verify"):
        made(security)


@pytest.mark.parametrize("call", ["create", "sign"])
def test_a_key_service_that_hangs_is_no_key(call: str) -> None:
    security = FakeSecurity()
    security.hang = call
    try:
        with pytest.raises(EnclaveError, match="does not answer within"):
            new_key("darwin", security.load, creation_s=0.05, signing_s=0.05)
    finally:
        security.let_go.set()


def test_a_key_on_another_curve_is_none() -> None:
    security = FakeSecurity()
    security.curve = ec.SECP384R1()
    with pytest.raises(EnclaveError, match="not a P-256 point"):
        made(security)


def test_a_machine_that_is_no_mac_has_no_enclave() -> None:
    def load(name: str) -> ModuleType:
        raise AssertionError(name)

    with pytest.raises(EnclaveError, match="not a Mac"):
        new_key("linux", load)


def test_a_mac_without_pyobjc_is_told_what_to_install() -> None:
    def load(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    with pytest.raises(EnclaveError, match="Security is not installed") as refused:
        new_key("darwin", load)
    assert refused.value.next_step is not None


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have one")
def test_this_machine_has_none() -> None:
    with pytest.raises(EnclaveError):
        new_key()
