"""What a provider says at the door, and what the coordinator makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.protocol.boxes import KeyPair, decode_base64
from darkbloom_provider.protocol.codec import MAX_PROVIDER_FRAME
from darkbloom_provider.protocol.messages import (
    AttestationChallenge,
    AttestationResponse,
    BackendCapacity,
    BackendSlot,
    Hardware,
    Heartbeat,
    HeartbeatStats,
    ModelInfo,
    SystemMetrics,
)
from support.network import QUICK, Network, network
from support.recordings import SESSIONS, recording, vectors
from support.scripted_provider import (
    MODEL,
    WALLET,
    Job,
    ScriptedProvider,
    honest,
    registration,
    scripted_provider,
)


async def idle(job: Job) -> None:
    del job


async def registered(net: Network, count: int = 1) -> Session:
    await net.until(lambda: len(net.coordinator.hub.registry) == count)
    return list(net.coordinator.hub.registry)[-1]


async def test_a_provider_is_challenged_at_once_and_routable_after_its_answer(
    tmp_path: Path,
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        [challenge] = provider.challenges
        assert len(decode_base64(challenge.nonce)) == 32
        assert len(challenge.timestamp) == len("2026-01-02T03:04:05Z")
        health = (await net.http.get("/health")).json()
        assert health == {
            "status": "ok",
            "providers": 1,
            "extensions": ["device-token-read", "device-revoke", "earnings-filter"],
        }
        [model] = (await net.http.get("/v1/models")).json()["data"]
        assert model["id"] == MODEL
        assert model["metadata"]["provider_count"] == 1
        assert model["metadata"]["trust_level"] == "none"
        [shown] = (await net.http.get("/v1/providers/attestation")).json()["providers"]
        assert (shown["status"], shown["sip_enabled"]) == ("online", True)
        assert not shown["secure_enclave"]


async def test_a_network_without_providers_shows_empty_lists(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        assert (await net.http.get("/v1/providers/attestation")).json()["providers"] == []
        assert (await net.http.get("/v1/models")).json()["data"] == []
        assert (await net.http.get("/health")).json()["providers"] == 0


async def test_models_outside_the_catalogue_are_left_out(tmp_path: Path) -> None:
    models = (ModelInfo(id="unheard-of"), ModelInfo(id=MODEL), ModelInfo(id=MODEL))
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, models=models),
    ):
        assert [model.id for model in (await registered(net)).models] == [MODEL]


@pytest.mark.parametrize("key", ["", "short", "A" * 44, "!" * 44])
async def test_an_unusable_key_keeps_the_connection_but_gets_no_work(
    tmp_path: Path, key: str
) -> None:
    async with (
        network(tmp_path, timing=replace(QUICK, queue_wait=0.05)) as net,
        scripted_provider(net.ws_url, idle, public_key=key),
    ):
        session = await registered(net)
        assert session.public_key == ""
        assert (await net.ask()).status_code == 503


async def test_self_reported_figures_are_clamped(tmp_path: Path) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(
            net.ws_url,
            idle,
            hardware=Hardware(memory_gb=10**9, memory_bandwidth_gbs=1e9),
            decode_tps=1e9,
            prefill_tps=-5.0,
        ) as provider,
    ):
        session = await registered(net)
        assert session.hardware.memory_gb == 1024
        assert session.hardware.memory_bandwidth_gbs == 2000
        assert (session.decode_tps, session.prefill_tps) == (500, 0)
        slot = BackendSlot(model=MODEL, num_running=-3, max_tokens_potential=10**12)
        await provider.send(
            Heartbeat(
                status="serving",
                active_model=MODEL,
                warm_models=(MODEL,),
                stats=HeartbeatStats(requests_served=2, tokens_generated=9),
                system_metrics=SystemMetrics(memory_pressure=7.0, cpu_usage=-1.0),
                backend_capacity=BackendCapacity(slots=(slot,), total_memory_gb=1e9),
            )
        )
        await net.until(lambda: session.status == "serving")
        assert (session.metrics.memory_pressure, session.metrics.cpu_usage) == (1, 0)
        assert session.capacity is not None
        assert session.capacity.total_memory_gb == 1024
        [held] = session.capacity.slots
        assert (held.num_running, held.max_tokens_potential) == (0, 1_000_000)
        # What a later heartbeat leaves out keeps its value.
        await provider.heartbeat()
        await net.until(lambda: session.status == "online")
        assert session.active_model == MODEL
        assert session.warm_models == (MODEL,)
        assert session.capacity is not None


@pytest.mark.parametrize(
    "frame",
    [
        "not json",
        "[]",
        "{}",
        '{"type":"telemetry"}',
        '{"type":5}',
        b"\xff\xfe",
        '{"type":"heartbeat","stats":{"requests_served":1.5}}',
        '{"type":"inference_complete","request_id":"unknown","usage":{}}',
        '{"type":"inference_response_chunk","request_id":"unknown"}',
        '{"type":"inference_error","request_id":""}',
        '{"type":"attestation_response","nonce":"x","signature":"y"}',
        "[" * 50_000,
    ],
)
async def test_a_senseless_frame_costs_nothing_but_itself(
    tmp_path: Path, frame: str | bytes
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        session = await registered(net)
        await provider.send_raw(frame)
        await provider.heartbeat(status="serving")
        await net.until(lambda: session.status == "serving")


async def test_nothing_counts_before_the_registration(tmp_path: Path) -> None:
    async with network(tmp_path) as net, connect(net.ws_url) as socket:
        await socket.send('{"type":"heartbeat","status":"idle"}')
        await socket.send('{"type":"inference_accepted","request_id":"x"}')
        pong = await socket.ping()
        await pong
        assert len(net.coordinator.hub.registry) == 0


async def test_binary_frames_count_too_and_no_extension_is_negotiated(tmp_path: Path) -> None:
    async with network(tmp_path) as net, connect(net.ws_url, compression="deflate") as socket:
        assert socket.response is not None
        assert "sec-websocket-extensions" not in socket.response.headers
        await socket.send(b'{"type":"register","public_key":"x"}')
        challenge = json.loads(await socket.recv())
        assert challenge["type"] == "attestation_challenge"


async def test_a_frame_over_the_limit_closes_with_1009_and_no_other_harm(tmp_path: Path) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle),
        connect(net.ws_url) as socket,
    ):
        largest = '{"type":"heartbeat","pad":"' + "x" * (MAX_PROVIDER_FRAME - 29) + '"}'
        assert len(largest) == MAX_PROVIDER_FRAME
        await socket.send(largest)
        await (await socket.ping())
        with contextlib.suppress(ConnectionClosed):
            await socket.send(largest + " ")
        await socket.wait_closed()
        assert socket.close_code == 1009
        assert (await net.http.get("/health")).json()["providers"] == 1


async def test_a_second_registration_replaces_the_first_and_fails_its_work(
    tmp_path: Path,
) -> None:
    async with (
        network(tmp_path, timing=replace(QUICK, queue_wait=0.05)) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        request = asyncio.create_task(net.ask())
        await net.until(lambda: bool(provider.jobs))
        first = await registered(net)
        await provider.send_raw('{"type":"register","public_key":"x"}')
        assert (await request).status_code == 502
        assert (await registered(net)).id != first.id
        await net.until(lambda: len(provider.challenges) == 2)


async def test_a_registration_with_the_same_key_lets_running_jobs_go_on(tmp_path: Path) -> None:
    models = (ModelInfo(id=MODEL), ModelInfo(id="qwen3.5-27b-claude-opus-8bit"))
    go_on = asyncio.Event()

    async def wait_and_answer(job: Job) -> None:
        await job.accept()
        await go_on.wait()
        await job.answer("Hello", usage=(1000, 2000))
        await job.complete(1000, 2000)

    keys = KeyPair.generate()
    async with network(tmp_path) as net:
        token, owner = await net.link()
        async with scripted_provider(net.ws_url, wait_and_answer, keys=keys) as provider:
            request = asyncio.create_task(net.ask())
            await net.until(lambda: bool(provider.jobs))
            before = await registered(net)
            await provider.send(registration(keys, models=models, auth_token=token))
            await net.until(lambda: len(provider.challenges) == 2)
            after = await registered(net)
            assert after is before
            assert len(after.models) == 2
            go_on.set()
            assert (await request).status_code == 200
            assert await net.balance(owner) == 450
            await net.until(lambda: provider.cancels == list(provider.jobs))
            assert after.attempts == {}


async def test_what_a_wallet_earned_last_moves_to_the_account_it_is_linked_to_next(
    tmp_path: Path,
) -> None:
    keys = KeyPair.generate()

    async def answer_and_link(job: Job) -> None:
        await job.answer("Hello", usage=(1000, 2000))
        # In one breath: the ledger has not closed the job when the registration is read.
        await job.complete(1000, 2000)
        await provider.send(registration(keys, wallet_address=WALLET, auth_token=token))

    async with network(tmp_path) as net:
        token, owner = await net.link()
        async with scripted_provider(
            net.ws_url, answer_and_link, keys=keys, wallet_address=WALLET
        ) as provider:
            assert (await net.ask()).status_code == 200
            await net.until(lambda: len(provider.challenges) == 2)
            assert await net.balance(owner) == 450


async def test_a_registration_again_has_to_pass_a_challenge_again(tmp_path: Path) -> None:
    keys = KeyPair.generate()

    def once(challenge: AttestationChallenge) -> Answer:
        return None if provider.challenges[1:] else honest(keys)(challenge)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=once) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        await provider.send(registration(keys))
        await net.until(lambda: len(provider.challenges) == 2)
        assert net.verified() == 0


async def test_an_evicted_provider_that_registers_again_on_its_socket_gets_work(
    tmp_path: Path,
) -> None:
    async def answer(job: Job) -> None:
        await job.answer("Hello", usage=(1, 1))
        await job.complete(1, 1)

    keys = KeyPair.generate()
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, answer, keys=keys) as provider,
    ):
        session = await registered(net)
        session.heartbeat_at -= 91
        net.coordinator.hub.evict()
        assert len(net.coordinator.hub.registry) == 0
        await provider.send(registration(keys))
        await net.until(lambda: net.verified() == 1)
        assert (await net.ask()).status_code == 200


async def test_a_heartbeat_within_ninety_seconds_keeps_a_provider(tmp_path: Path) -> None:
    async with network(tmp_path) as net, scripted_provider(net.ws_url, idle):
        session = await registered(net)
        await net.until(lambda: net.verified() == 1)
        session.heartbeat_at -= 80
        net.coordinator.hub.evict()
        assert len(net.coordinator.hub.registry) == 1


async def test_work_of_a_machine_that_connects_twice_goes_to_its_new_connection(
    tmp_path: Path,
) -> None:
    async def answer(job: Job) -> None:
        await job.answer("Hello", usage=(1, 1))
        await job.complete(1, 1)

    # The vectors' machine, whose signing key nobody has: what binds its challenges is left out.
    keys, fields = attested()
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=lambda _: None, **fields),
    ):
        first = await registered(net)
        first.verified_at, first.sip_verified = net.coordinator.hub.sources.monotonic(), True
        request = asyncio.create_task(net.ask())
        await net.until(lambda: bool(first.attempts))
        async with scripted_provider(net.ws_url, answer, decode_tps=1.0):
            await net.until(lambda: net.verified() == 2)
            async with scripted_provider(net.ws_url, idle, keys=keys, **fields):
                # Its job failed before a chunk came, and was tried elsewhere.
                assert (await request).status_code == 200
                assert first not in net.coordinator.hub.registry


async def test_a_silent_provider_is_evicted_but_its_socket_stays(tmp_path: Path) -> None:
    async with (
        network(tmp_path, timing=replace(QUICK, eviction_scan=0.01)) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        request = asyncio.create_task(net.ask())
        await net.until(lambda: bool(provider.jobs))
        (await registered(net)).heartbeat_at -= 91
        assert (await request).status_code == 502
        assert len(net.coordinator.hub.registry) == 0
        # A later heartbeat is ignored; only a new registration brings it back.
        await provider.heartbeat()
        await (await provider.connection.ping())
        assert len(net.coordinator.hub.registry) == 0


async def test_a_runtime_that_is_not_listed_is_told_and_gets_no_work(tmp_path: Path) -> None:
    policy = Policy(accepted_runtime_hashes=frozenset({"good"}))
    async with (
        network(tmp_path, policy=policy, timing=replace(QUICK, queue_wait=0.05)) as net,
        scripted_provider(net.ws_url, idle, runtime_hash="bad") as provider,
    ):
        await net.until(lambda: len(provider.statuses) == 2)  # at the door and at the challenge
        [mismatch] = provider.statuses[0].mismatches
        assert (mismatch.component, mismatch.got) == ("runtime", "bad")
        assert (await net.ask()).status_code == 503
        manifest = (await net.http.get("/v1/runtime/manifest")).json()
        assert manifest["runtime_hashes"] == {"good": True}


async def test_a_provider_is_told_why_it_is_not_routed_and_when_that_is_over(
    tmp_path: Path,
) -> None:
    hot = SystemMetrics(thermal_state="critical")
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, extensions=("routing_status",)) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        for _ in range(3):
            await provider.heartbeat(system_metrics=hot)
        await net.until(lambda: len(provider.reasons) == 1)
        [reason] = provider.reasons[0].reasons
        assert (reason.code, reason.what) == ("heat", "is too hot")
        assert "cool" in reason.next_step
        await provider.heartbeat()
        await net.until(lambda: len(provider.reasons) == 2)
        assert provider.reasons[1].routable
        assert provider.reasons[1].reasons == ()
        # What does not change is not repeated.
        await provider.heartbeat()
        await (await provider.connection.ping())
        assert len(provider.reasons) == 2


async def test_a_provider_below_the_trust_floor_is_told_so_after_its_first_challenge(
    tmp_path: Path,
) -> None:
    async with (
        network(tmp_path, policy=Policy(min_trust="hardware")) as net,
        scripted_provider(net.ws_url, idle, extensions=("routing_status",)) as provider,
    ):
        await net.until(lambda: bool(provider.reasons))
        [told] = provider.reasons
        assert not told.routable
        assert [reason.code for reason in told.reasons] == ["low_trust"]


async def test_a_provider_of_another_make_is_never_sent_a_message_it_may_not_know(
    tmp_path: Path,
) -> None:
    async with (
        network(tmp_path, policy=Policy(min_trust="hardware")) as net,
        scripted_provider(net.ws_url, idle) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        await provider.heartbeat()
        await (await provider.connection.ping())
        assert provider.reasons == []


GOOD, BAD = "a" * 64, "b" * 64


async def test_every_component_of_the_runtime_is_held_to_the_operators_lists(
    tmp_path: Path,
) -> None:
    policy = Policy(
        accepted_python_hashes=frozenset({GOOD, "c" * 64}),
        accepted_runtime_hashes=frozenset({GOOD}),
        accepted_template_hashes={"chatml": GOOD, "llama": GOOD},
    )
    async with (
        network(tmp_path, policy=policy) as net,
        scripted_provider(
            net.ws_url,
            idle,
            python_hash=BAD,
            template_hashes={"chatml": BAD, "mine": GOOD},
        ) as provider,
    ):
        await net.until(lambda: len(provider.statuses) == 2)
        told = {m.component: (m.expected, m.got) for m in provider.statuses[0].mismatches}
        assert told == {
            "python": ("one of 2 accepted hashes", BAD),
            "runtime": ("one of 1 accepted hashes", "(missing)"),
            "template:chatml": (GOOD, BAD),
            "template:llama": (GOOD, "(missing)"),
            "template:mine": ("no such template", GOOD),
        }
        session = await registered(net)
        # Neither a pass nor a failure.
        assert (session.verified_at, session.challenge_failures) == (None, 0)
        manifest = (await net.http.get("/v1/runtime/manifest")).json()
        assert manifest["template_hashes"] == {"chatml": GOOD, "llama": GOOD}


async def test_a_runtime_that_matches_every_list_gets_work(tmp_path: Path) -> None:
    hashes: dict[str, Any] = {
        "python_hash": GOOD,
        "runtime_hash": GOOD,
        "template_hashes": {"chatml": GOOD},
    }
    policy = Policy(
        accepted_python_hashes=frozenset({GOOD, BAD}),
        accepted_runtime_hashes=frozenset({BAD, GOOD}),
        accepted_template_hashes={"chatml": GOOD},
        accepted_binary_hashes=frozenset({GOOD}),
        min_version="0.4.7",
    )
    keys = KeyPair.generate()
    answers = answering(keys, binary_hash=GOOD, **hashes)
    async with (
        network(tmp_path, policy=policy) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=answers, **hashes) as provider,
    ):
        await net.until(lambda: net.verified() == 1)
        assert provider.statuses == []
        [candidate] = net.coordinator.hub.registry.candidates()
        assert candidate.runtime_verified
        assert not candidate.outdated


async def test_a_version_below_the_operators_is_told_and_gets_no_work(tmp_path: Path) -> None:
    timing = replace(QUICK, queue_wait=0.05)
    async with (
        network(tmp_path, policy=Policy(min_version="0.4.8"), timing=timing) as net,
        scripted_provider(net.ws_url, idle, extensions=("routing_status",)) as provider,
    ):
        await net.until(lambda: bool(provider.reasons))
        [reason] = provider.reasons[0].reasons
        assert reason.code == "version"
        assert (await net.ask()).status_code == 503


async def test_a_program_that_is_not_listed_costs_the_trust(tmp_path: Path) -> None:
    keys = KeyPair.generate()
    policy = Policy(accepted_binary_hashes=frozenset({GOOD}))
    answers = answering(keys, binary_hash=BAD)
    async with (
        network(tmp_path, policy=policy) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=answers),
    ):
        session = await registered(net)
        await net.until(lambda: session.challenge_failures == 1)
        assert session.challenge_problem == "its program is not on the operator's list"


async def test_an_attestation_of_a_program_that_is_not_listed_proves_nothing(
    tmp_path: Path,
) -> None:
    keys, fields = attested()
    policy = Policy(accepted_binary_hashes=frozenset({"0" * 64}))
    async with (
        network(tmp_path, policy=policy) as net,
        scripted_provider(net.ws_url, idle, keys=keys, **fields),
    ):
        session = await registered(net)
        assert session.attestation is not None
        assert session.attestation.binary_hash
        assert (session.trust, session.attested) == ("none", False)


# ---------------------------------------------------------------- attestation


def attested(**changes: Any) -> tuple[KeyPair, dict[str, Any]]:
    """The vectors' attested machine: its keys and the fields of its registration."""
    known = vectors()
    keys = KeyPair(decode_base64(known["provider_key"]["provider_private_b64"]))
    return keys, {"attestation": known["attestation_text"], **changes}


async def test_a_valid_attestation_is_self_signed_and_replaces_the_same_machine(
    tmp_path: Path,
) -> None:
    keys, fields = attested()
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=keys, **fields) as old,
    ):
        session = await registered(net)
        assert (session.trust, session.serial) == ("self_signed", "TESTSERIAL01")
        [shown] = (await net.http.get("/v1/providers/attestation")).json()["providers"]
        assert "system_volume_hash" not in shown
        assert session.attestation is not None
        volume = {"system_volume_hash": "ab" * 32}
        session.attestation = session.attestation.model_copy(update=volume)
        [shown] = (await net.http.get("/v1/providers/attestation")).json()["providers"]
        assert shown | volume == shown
        async with scripted_provider(net.ws_url, idle, keys=keys, **fields):
            await old.connection.wait_closed()
            assert old.connection.close_code == 1000
            assert old.connection.close_reason == "replaced by new connection from same device"
            assert (await registered(net)).id != session.id
            # A made-up signature does not pass for the attested key.
            assert net.verified() == 0


async def test_a_damaged_attestation_proves_nothing_and_still_binds_its_key(
    tmp_path: Path,
) -> None:
    keys, fields = attested()
    damaged = fields["attestation"].replace('"osVersion":"26.1.0"', '"osVersion":"26.1.1"')
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=keys, attestation=damaged),
    ):
        session = await registered(net)
        assert (session.trust, session.attested) == ("none", False)
        await net.until(lambda: session.challenge_failures == 1)
        [shown] = (await net.http.get("/v1/providers/attestation")).json()["providers"]
        assert (shown["serial_number"], shown["secure_enclave"]) == ("", False)


# ---------------------------------------------------------------- recorded providers


@pytest.mark.parametrize("name", SESSIONS)
async def test_every_recorded_provider_registers_as_it_did(tmp_path: Path, name: str) -> None:
    sent = [line["frame"] for line in recording(name) if line.get("dir") == "send"]
    register = next(frame for frame in sent if frame["type"] == "register")
    heartbeat = next(frame for frame in sent if frame["type"] == "heartbeat")
    async with network(tmp_path) as net, connect(net.ws_url) as socket:
        await socket.send(json.dumps(register, separators=(",", ":")))
        challenge = json.loads(await socket.recv())
        assert challenge["type"] == "attestation_challenge"
        await socket.send(json.dumps(heartbeat))
        session = await registered(net)
        assert session.public_key == register["public_key"]
        assert {model.id for model in session.models} == {m["id"] for m in register["models"]}
        expected = "self_signed" if "selfsigned" in name else "none"
        assert session.trust == expected


# ---------------------------------------------------------------- challenges

Answer = AttestationResponse | None


def answering(keys: KeyPair, **changes: Any) -> Any:
    def answer(challenge: AttestationChallenge) -> Answer:
        fields = {
            "nonce": challenge.nonce,
            "signature": "unsigned",
            "public_key": keys.public_text,
            "rdma_disabled": True,
            "sip_enabled": True,
        } | changes
        return AttestationResponse.model_validate(
            {name: value for name, value in fields.items() if value is not None}
        )

    return answer


@pytest.mark.parametrize(
    ("changes", "untrusted"),
    [
        ({"public_key": "other"}, False),
        ({"signature": ""}, False),
        ({"sip_enabled": None}, False),
        ({"sip_enabled": False}, True),
        ({"secure_boot_enabled": False}, True),
        ({"rdma_disabled": None}, False),
        ({"rdma_disabled": False}, True),
    ],
)
async def test_a_bad_answer_makes_a_provider_unroutable(
    tmp_path: Path, changes: dict[str, Any], *, untrusted: bool
) -> None:
    keys = KeyPair.generate()
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=answering(keys, **changes)),
    ):
        session = await registered(net)
        await net.until(lambda: session.challenge_failures == 1)
        assert session.verified_at is None
        # The heartbeat of the start may have come after the verdict and lifted the distrust.
        assert session.status in ({"untrusted", "online"} if untrusted else {"online"})


async def test_an_answer_that_comes_too_late_counts_for_nothing(tmp_path: Path) -> None:
    keys = KeyPair.generate()
    timing = replace(QUICK, challenge_interval=0.03, challenge_answer=0.02)
    async with (
        network(tmp_path, timing=timing) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=lambda _: None) as provider,
    ):
        session = await registered(net)
        await net.until(lambda: session.challenge_failures >= 2)
        for stale in provider.challenges[:2]:
            await provider.send(answering(keys)(stale))
        failures = session.challenge_failures
        await net.until(lambda: session.challenge_failures > failures)
        assert session.verified_at is None


async def test_the_answer_to_another_machines_challenge_counts_for_nothing(tmp_path: Path) -> None:
    mine, theirs = KeyPair.generate(), KeyPair.generate()
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=mine, answers=lambda _: None) as one,
        scripted_provider(net.ws_url, idle, keys=theirs, answers=lambda _: None) as other,
    ):
        await registered(net, 2)
        await net.until(lambda: bool(one.challenges and other.challenges))
        await one.send(answering(mine)(other.challenges[0]))
        await other.send(answering(theirs)(one.challenges[0]))
        await other.send(answering(theirs)(other.challenges[0]))
        await net.until(lambda: net.verified() == 1)
        (passed,) = [s for s in net.coordinator.hub.registry if s.verified_at is not None]
        assert passed.public_key == theirs.public_text


async def test_an_answer_that_passed_once_does_not_pass_again(tmp_path: Path) -> None:
    keys = KeyPair.generate()
    good: list[AttestationChallenge] = []
    replaying = asyncio.Event()

    def answer(challenge: AttestationChallenge) -> Answer:
        if not replaying.is_set():
            good.append(challenge)
        replayed: Answer = answering(keys)(good[-1])
        return replayed

    timing = replace(QUICK, challenge_interval=0.03, challenge_answer=0.05)
    async with (
        network(tmp_path, timing=timing) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=answer),
    ):
        session = await registered(net)
        await net.until(lambda: session.verified_at is not None)
        replaying.set()
        await net.until(lambda: session.challenge_failures >= 3)


async def test_rdma_may_be_on_under_a_hypervisor(tmp_path: Path) -> None:
    keys = KeyPair.generate()
    answers = answering(keys, rdma_disabled=False, hypervisor_active=True)
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=answers),
    ):
        await net.until(lambda: net.verified() == 1)


async def test_three_silences_in_a_row_cost_the_trust_and_a_pass_restores_it(
    tmp_path: Path,
) -> None:
    keys = KeyPair.generate()
    asked = 0

    def late(challenge: AttestationChallenge) -> Answer:
        nonlocal asked
        asked += 1
        return answering(keys)(challenge) if asked > 3 else None

    timing = replace(QUICK, challenge_interval=0.03, challenge_answer=0.02)
    async with (
        network(tmp_path, timing=timing) as net,
        scripted_provider(net.ws_url, idle, keys=keys, answers=late),
    ):
        session = await registered(net)
        await net.until(lambda: session.status == "untrusted")
        await net.until(lambda: session.challenge_failures == 0)
        assert session.verified_at is not None


async def test_a_stale_pass_stops_routing(tmp_path: Path) -> None:
    timing = replace(QUICK, challenge_fresh=0.02, queue_wait=0.1)
    async with (
        network(tmp_path, timing=timing) as net,
        scripted_provider(net.ws_url, idle),
    ):
        await net.until(lambda: net.verified() == 1)
        session = await registered(net)
        verified = session.verified_at
        assert verified is not None
        clock = net.coordinator.hub.sources.monotonic
        await net.until(lambda: clock() - verified > 0.02)
        assert (await net.ask()).status_code == 503


async def test_a_waiting_request_is_served_as_soon_as_a_provider_passes(tmp_path: Path) -> None:
    async def answer(job: Job) -> None:
        await job.answer("Hello", usage=(1, 1))
        await job.complete(1, 1)

    async with network(tmp_path) as net:
        request = asyncio.create_task(net.ask())
        await net.until(lambda: net.coordinator.hub.requests.count == 1)
        async with scripted_provider(net.ws_url, answer) as provider:
            assert isinstance(provider, ScriptedProvider)
            assert (await request).status_code == 200
