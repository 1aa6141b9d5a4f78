from __future__ import annotations

from darkbloom_provider.coordinator.providers.registration import machine_identity
from darkbloom_provider.protocol.attestation import Judgement, judge
from darkbloom_provider.protocol.messages import Register
from support.recordings import vectors

VECTORS = vectors()
MACHINE = "0123456789abcdef" * 2
ATTESTED = judge(VECTORS["attestation_text"], VECTORS["provider_key"]["provider_public_b64"])
NOTHING = Judgement(None, "none was sent")


def test_a_machine_is_known_by_the_secret_it_made_up_itself() -> None:
    assert machine_identity(Register(machine_id=MACHINE), NOTHING) == MACHINE
    assert machine_identity(Register(machine_id=MACHINE), ATTESTED) == MACHINE


def test_an_attested_machine_without_one_is_known_by_its_key_never_by_its_public_serial() -> None:
    assert ATTESTED.valid
    identity = machine_identity(Register(), ATTESTED)
    assert identity == VECTORS["p256"]["public_xy_b64"]
    assert identity != "TESTSERIAL01"


def test_whoever_proves_nothing_has_no_identity() -> None:
    assert machine_identity(Register(), NOTHING) is None
    assert machine_identity(Register(machine_id="not hex"), NOTHING) is None
    invalid = judge(VECTORS["attestation_text"], "another key")
    assert machine_identity(Register(), invalid) is None
