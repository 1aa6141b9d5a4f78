from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.control.models import JobCounts
from darkbloom_provider.daemon.facts import Machine, ProviderFacts, attestation_of, capacity
from darkbloom_provider.daemon.speeds import MeasuredSpeeds
from darkbloom_provider.engine.requests import EngineSnapshot, MemorySnapshot, SlotSnapshot
from darkbloom_provider.engine.speeds import Speed
from darkbloom_provider.host.enclave import EnclaveError
from darkbloom_provider.host.posture import Posture, development, linux_posture
from darkbloom_provider.host.runtime import Hashes
from darkbloom_provider.logs import Secret
from darkbloom_provider.protocol import codec, signed
from darkbloom_provider.protocol.attestation import judge
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    Hardware,
    ModelInfo,
    PrivacyCapabilities,
    Register,
    SystemMetrics,
)
from darkbloom_provider.protocol.signed import SoftwareKey

AT = dt.datetime(2026, 1, 2, 4, 4, 5, 999, tzinfo=dt.timezone(dt.timedelta(hours=1)))
CHALLENGE = AttestationChallenge(nonce="bm9uY2Utbm9uY2U=", timestamp="2026-01-02T03:04:05Z")
MACHINE = Machine(
    hardware=Hardware(chip_name="Apple M4 Max", memory_gb=128),
    posture=Posture(
        sip_enabled=True, secure_boot_enabled=True, rdma_disabled=True, hypervisor_active=False
    ),
    wallet_address="0xabc",
    machine_id="0" * 32,
)


@dataclasses.dataclass
class FakeActivity:
    """What the daemon would say."""

    linked: Secret | None = None
    jobs: JobCounts = dataclasses.field(default_factory=JobCounts)
    warm_ids: tuple[str, ...] = ("m",)

    def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(id="m", size_bytes=5, model_type="llama", quantization="8bit"),)

    def warm(self) -> tuple[str, ...]:
        return self.warm_ids

    def token(self) -> Secret | None:
        return self.linked

    def counts(self) -> JobCounts:
        return self.jobs

    def engine(self) -> EngineSnapshot:
        return EngineSnapshot(
            slots=(SlotSnapshot("m", "running", 1, 2, 300, 400),),
            memory=MemorySnapshot(active_gb=2**30 / 10**9, peak_gb=0, cache_gb=0),
        )

    def capabilities(self) -> PrivacyCapabilities:
        return PrivacyCapabilities(env_scrubbed=True)


def facts(
    activity: FakeActivity | None = None,
    machine: Machine = MACHINE,
    attestation: str | None = None,
    unattested: Callable[[], object] = lambda: None,
) -> ProviderFacts:
    return ProviderFacts(
        machine,
        activity or FakeActivity(),
        version="1.2.3",
        public_key="the-public-key",
        attestation=attestation,
        unattested=unattested,
    )


def test_the_registration_says_what_was_measured_and_nothing_else() -> None:
    register, attestation = facts().registration()
    assert attestation is None
    assert register.backend == "inprocess-mlx"
    assert register.version == "1.2.3"
    assert register.public_key == "the-public-key"
    assert register.encrypted_response_chunks is True
    assert register.wallet_address == "0xabc"
    assert register.machine_id == "0" * 32
    assert register.auth_token is None
    assert register.privacy_capabilities == PrivacyCapabilities(env_scrubbed=True)
    assert [model.id for model in register.models] == ["m"]
    assert register.hardware == MACHINE.hardware


def test_the_token_travels_in_the_registration_and_shows_in_no_representation() -> None:
    register, _ = facts(FakeActivity(linked=Secret("eigeninference-pt-" + "a" * 64))).registration()
    assert register.auth_token == "eigeninference-pt-" + "a" * 64
    assert "aaaa" not in repr(register)
    assert "00000000" not in repr(MACHINE)
    assert codec.decode_from_provider(codec.encode(register)) == register


def test_the_heartbeat_says_serving_only_while_requests_run() -> None:
    assert facts().heartbeat().status == "idle"
    busy = FakeActivity(jobs=JobCounts(in_flight=1, served=4, completion_tokens=99))
    beat = facts(busy).heartbeat()
    assert beat.status == "serving"
    assert (beat.stats.requests_served, beat.stats.tokens_generated) == (4, 99)
    assert beat.active_model == "m"
    assert beat.warm_models == ("m",)


def test_without_a_model_in_memory_none_is_named() -> None:
    beat = facts(FakeActivity(warm_ids=())).heartbeat()
    assert beat.active_model is None
    assert beat.warm_models == ()


def test_capacity_is_the_engines_in_the_unit_of_the_hardware() -> None:
    figures = capacity(FakeActivity().engine(), 128)
    (slot,) = figures.slots
    assert (slot.model, slot.state, slot.num_running, slot.num_waiting) == ("m", "running", 1, 2)
    assert (slot.active_tokens, slot.max_tokens_potential) == (300, 400)
    assert figures.gpu_memory_active_gb == 1.0
    assert figures.total_memory_gb == 128.0


def test_kept_prompts_are_told_as_cache_for_they_give_way() -> None:
    engine = EngineSnapshot(memory=MemorySnapshot(active_gb=3, cache_gb=1, prompt_cache_gb=2))
    figures = capacity(engine, 8)
    assert figures.gpu_memory_active_gb == pytest.approx(10**9 / 2**30, abs=0.001)
    assert figures.gpu_memory_cache_gb == pytest.approx(3 * 10**9 / 2**30, abs=0.001)


def test_a_challenge_is_answered_with_true_signatures() -> None:
    key = SoftwareKey()
    answer = facts(machine=dataclasses.replace(MACHINE, enclave_key=key)).answer(CHALLENGE)
    public = key.public_text
    message = signed.challenge_message(CHALLENGE.nonce, CHALLENGE.timestamp)
    assert signed.verify(public, answer.signature, message)
    assert answer.status_signature is not None
    unsigned = answer.model_copy(update={"status_signature": None})
    assert signed.verify(
        public, answer.status_signature, signed.status_message(CHALLENGE, unsigned)
    )
    assert (answer.nonce, answer.public_key) == (CHALLENGE.nonce, "the-public-key")
    assert (answer.sip_enabled, answer.rdma_disabled) == (True, True)
    assert (answer.secure_boot_enabled, answer.hypervisor_active) == (True, False)


def test_an_unknown_fact_stays_absent_and_a_false_one_is_said() -> None:
    machine = dataclasses.replace(MACHINE, posture=Posture(sip_enabled=False))
    text = codec.encode(facts(machine=machine).answer(CHALLENGE))
    assert '"sip_enabled":false' in text
    assert "rdma_disabled" not in text
    assert "secure_boot_enabled" not in text
    assert "hypervisor_active" not in text


@pytest.mark.parametrize("claim", [False, True])
def test_a_machine_that_is_no_mac_claims_facts_in_development_posture_only(claim: bool) -> None:
    posture = linux_posture("flags : fpu hypervisor\n", "x86_64")
    machine = dataclasses.replace(MACHINE, posture=development(posture) if claim else posture)
    answer = facts(machine=machine).answer(CHALLENGE)
    assert (answer.sip_enabled, answer.rdma_disabled) == (claim, claim)
    assert answer.secure_boot_enabled is (True if claim else None)
    # A guest: told only where it excuses no RDMA.
    assert answer.hypervisor_active is (True if claim else None)


def test_a_challenge_is_signed_where_there_is_no_enclave_too() -> None:
    answer = facts().answer(CHALLENGE)
    assert answer.signature, "the protocol takes no empty one"


def test_hashes_that_were_measured_are_registered_and_signed_in_every_answer() -> None:
    measured = Hashes(python="1" * 64, runtime="2" * 64, files=3)
    told = facts(machine=dataclasses.replace(ENCLAVED, runtime=measured))
    register, answer = told.registration()[0], told.answer(CHALLENGE)
    for message in (register, answer):
        assert (message.python_hash, message.runtime_hash) == ("1" * 64, "2" * 64)
        assert message.template_hashes is None
    assert ENCLAVED.enclave_key is not None
    unsigned = answer.model_copy(update={"status_signature": None})
    status = signed.status_message(CHALLENGE, unsigned)
    assert b'"runtime_hash":"2222' in status
    assert signed.verify(ENCLAVED.enclave_key.public_text, answer.status_signature or "", status)


def test_hashes_that_could_not_be_measured_are_left_out() -> None:
    assert "_hash" not in codec.encode(facts().registration()[0])
    assert "_hash" not in codec.encode(facts().answer(CHALLENGE))


# ---------------------------------------------------------------- attestation

ENCLAVED = dataclasses.replace(
    MACHINE,
    hardware=Hardware(chip_name="Apple M4 Max", machine_model="Mac16,5"),
    posture=dataclasses.replace(MACHINE.posture, authenticated_root=True),
    os_version="26.1",
    enclave_key=SoftwareKey(),
)


def test_a_mac_with_an_enclave_attests_what_was_measured_bound_to_its_session_key() -> None:
    text = attestation_of(ENCLAVED, "the-public-key", AT)
    assert text is not None
    judgement = judge(text, "the-public-key")
    assert judgement.valid, judgement.problem
    assert ENCLAVED.enclave_key is not None
    assert json.loads(text)["attestation"] == {
        "authenticatedRootEnabled": True,
        "chipName": "Apple M4 Max",
        "encryptionPublicKey": "the-public-key",
        "hardwareModel": "Mac16,5",
        "osVersion": "26.1",
        "publicKey": ENCLAVED.enclave_key.public_text,
        "rdmaDisabled": True,
        "secureBootEnabled": True,
        "secureEnclaveAvailable": True,
        "sipEnabled": True,
        "timestamp": "2026-01-02T03:04:05Z",
    }


def test_the_attestation_travels_byte_for_byte_on_every_registration() -> None:
    text = attestation_of(ENCLAVED, "the-public-key", AT)
    told = facts(machine=ENCLAVED, attestation=text)
    assert told.registration()[1] == told.registration()[1] == text
    register = told.registration()[0].model_copy(update={"attestation": text})
    arrived = codec.decode_from_provider(codec.encode(register))
    assert isinstance(arrived, Register)
    assert arrived.attestation == text


class FailingKey:
    """A key that the system has taken away."""

    public_text = "key"

    def sign(self, _message: bytes) -> str:
        raise EnclaveError("The Secure Enclave does not sign")


def test_an_enclave_that_fails_later_ends_the_attestation_and_nothing_else() -> None:
    machine = dataclasses.replace(ENCLAVED, enclave_key=FailingKey())
    calls: list[str] = []
    told = facts(
        machine=machine,
        attestation="the attestation",
        unattested=lambda: calls.append("register again"),
    )
    answers = [told.answer(CHALLENGE) for _ in range(3)]
    assert all(answer.signature for answer in answers)
    assert told.registration()[1] is None
    assert calls == ["register again"]


def test_an_enclave_that_does_not_sign_attests_nothing() -> None:
    machine = dataclasses.replace(ENCLAVED, enclave_key=FailingKey())
    assert attestation_of(machine, "the-public-key", AT) is None


def test_without_an_enclave_none_is_sent() -> None:
    assert attestation_of(MACHINE, "the-public-key", AT) is None


@pytest.mark.parametrize("fact", ["sip_enabled", "secure_boot_enabled"])
@pytest.mark.parametrize("value", [False, None])
def test_an_attestation_that_would_be_invalid_is_not_sent(fact: str, value: bool | None) -> None:
    changes: dict[str, Any] = {fact: value}
    posture = dataclasses.replace(ENCLAVED.posture, **changes)
    machine = dataclasses.replace(ENCLAVED, posture=posture)
    assert attestation_of(machine, "the-public-key", AT) is None


def test_what_is_only_claimed_is_never_attested() -> None:
    posture = development(linux_posture("", "x86_64"))
    machine = dataclasses.replace(ENCLAVED, posture=posture)
    assert posture.sip_enabled
    assert posture.secure_boot_enabled
    assert attestation_of(machine, "the-public-key", AT) is None


def test_unknown_is_attested_as_off() -> None:
    posture = Posture(sip_enabled=True, secure_boot_enabled=True)
    text = attestation_of(dataclasses.replace(ENCLAVED, posture=posture), "key", AT)
    assert text is not None
    blob = json.loads(text)["attestation"]
    assert (blob["rdmaDisabled"], blob["authenticatedRootEnabled"]) == (False, False)


async def test_a_load_that_cannot_be_measured_ends_nothing() -> None:
    told, samples = facts(), [SystemMetrics(cpu_usage=0.5)]
    pauses = 0

    def sample() -> SystemMetrics:
        if not pauses:
            raise OSError("no /proc")
        return samples.pop()

    async def pause(_seconds: float) -> None:
        nonlocal pauses
        pauses += 1
        if not samples:
            raise EOFError

    with pytest.raises(EOFError):
        await told.keep_fresh(sample, 5, pause)
    assert told.heartbeat().system_metrics.cpu_usage == 0.5


async def test_the_load_of_the_machine_is_measured_off_the_loop_and_then_told() -> None:
    told = facts()
    measured = SystemMetrics(memory_pressure=0.5, cpu_usage=0.25, thermal_state="fair")

    async def stop(_seconds: float) -> None:
        raise EOFError

    with pytest.raises(EOFError):
        await told.keep_fresh(lambda: measured, 5, stop)
    assert told.heartbeat().system_metrics == measured


def test_measured_speeds_are_registered_and_none_is_made_up(tmp_path: Path) -> None:
    speeds = MeasuredSpeeds(tmp_path, "this machine")
    source = ProviderFacts(MACHINE, FakeActivity(), version="1", public_key="key", speeds=speeds)
    before = codec.encode(source.registration()[0])
    assert "tps" not in before
    speeds.note(EngineSnapshot(slots=(SlotSnapshot("m", "running", speed=Speed(None, 41.234)),)))
    register = source.registration()[0]
    assert (register.prefill_tps, register.decode_tps) == (None, 41.23)
