"""Every message, field for field, against the protocol's own index of fields."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from types import UnionType
from typing import Any, Final, get_args

import pytest
from pydantic import BaseModel

from darkbloom_provider.protocol import codec, messages
from darkbloom_provider.protocol.messages import InferenceRequest, Register
from support.recordings import recording

GOLDEN = recording("messages")
FIELDS: Final[dict[str, str]] = {
    "CpuCores": "total performance efficiency",
    "Hardware": "machine_model chip_name chip_family chip_tier memory_gb memory_available_gb "
    "cpu_cores gpu_cores memory_bandwidth_gbs",
    "ModelInfo": "id size_bytes model_type quantization weight_hash",
    "Register": "type hardware models backend version public_key encrypted_response_chunks "
    "wallet_address attestation prefill_tps decode_tps auth_token python_hash runtime_hash "
    "template_hashes privacy_capabilities",
    "PrivacyCapabilities": "text_backend_inprocess text_proxy_disabled python_runtime_locked "
    "dangerous_modules_blocked sip_enabled anti_debug_enabled core_dumps_disabled env_scrubbed "
    "hypervisor_active",
    "Heartbeat": "type status active_model stats warm_models system_metrics backend_capacity",
    "BackendSlot": "model state num_running num_waiting active_tokens max_tokens_potential",
    "BackendCapacity": "slots gpu_memory_active_gb gpu_memory_peak_gb gpu_memory_cache_gb "
    "total_memory_gb",
    "SystemMetrics": "memory_pressure cpu_usage thermal_state",
    "HeartbeatStats": "requests_served tokens_generated",
    "InferenceAccepted": "type request_id",
    "InferenceResponseChunk": "type request_id data encrypted_data",
    "Usage": "prompt_tokens completion_tokens",
    "InferenceComplete": "type request_id usage se_signature response_hash",
    "InferenceError": "type request_id error status_code",
    "InferenceRequest": "type request_id encrypted_body",
    "EncryptedPayload": "ephemeral_public_key ciphertext",
    "Cancel": "type request_id",
    "AttestationChallenge": "type nonce timestamp",
    "AttestationResponse": "type nonce signature status_signature public_key hypervisor_active "
    "rdma_disabled sip_enabled secure_boot_enabled binary_hash active_model_hash python_hash "
    "runtime_hash template_hashes model_hashes",
    "RuntimeStatus": "type verified mismatches",
    "RuntimeMismatch": "component expected got",
    "RoutingStatus": "type routable reasons",
    "RoutingReason": "code what next_step model",
}
"""The protocol's index of fields. `InferenceRequest.body`, plaintext of an older mode, is no field
here: it is never read, and a request without a box is refused."""
EXTENSIONS: Final = {"Register": {"machine_id", "extensions"}, "InferenceResponseChunk": {"usage"}}
NEVER_SENT: Final = {("InferenceResponseChunk", "data")}

INTEGERS: Final = frozenset(
    [
        "memory_gb",
        "gpu_cores",
        "total",
        "performance",
        "efficiency",
        "size_bytes",
        "requests_served",
        "tokens_generated",
        "num_running",
        "num_waiting",
        "active_tokens",
        "max_tokens_potential",
        "prompt_tokens",
        "completion_tokens",
        "status_code",
    ]
)


def decode(direction: str, wire: str) -> Any:
    if direction == "to coordinator":
        return codec.decode_from_provider(wire)
    return codec.decode_from_coordinator(wire)


def named(line: dict[str, Any]) -> str:
    return str(line["name"])


@pytest.mark.parametrize("line", GOLDEN, ids=named)
def test_a_message_is_read_and_written_byte_for_byte(line: dict[str, Any]) -> None:
    message = decode(line["direction"], line["wire"])
    assert codec.encode(message) == line["wire"]
    assert decode(line["direction"], codec.encode(message)) == message


@pytest.mark.parametrize("line", GOLDEN, ids=named)
def test_messages_pass_a_coordinators_own_spelling(line: dict[str, Any]) -> None:
    spaced = json.dumps(json.loads(line["wire"]), indent=1, sort_keys=True)
    message, again = decode(line["direction"], line["wire"]), decode(line["direction"], spaced)
    if isinstance(message, Register):  # a signed part keeps the spelling that it came in
        message = message.model_copy(update={"attestation": again.attestation})
    assert again == message


@pytest.mark.parametrize("name", FIELDS)
def test_a_message_has_the_fields_of_the_protocol_and_our_extensions(name: str) -> None:
    model = getattr(messages, name)
    assert issubclass(model, BaseModel)
    assert set(model.model_fields) == set(FIELDS[name].split()) | EXTENSIONS.get(name, set())


def test_there_are_no_other_messages() -> None:
    def kinds(union: UnionType) -> set[str]:
        return {message.__name__ for message in get_args(union)}

    sent, heard = kinds(messages.ProviderMessage), kinds(messages.CoordinatorMessage)
    assert sent | heard == {name for name in FIELDS if FIELDS[name].startswith("type ")}
    assert not sent & heard


def test_the_golden_messages_leave_no_field_out() -> None:
    seen: set[tuple[str, str]] = set()
    for line in GOLDEN:
        seen |= filled(decode(line["direction"], line["wire"]))
    expected = {
        (name, field)
        for name in FIELDS
        for field in {*FIELDS[name].split(), *EXTENSIONS.get(name, set())}
    }
    assert seen == expected - NEVER_SENT


def filled(value: Any) -> set[tuple[str, str]]:
    """Every field that has a value, in a message and its parts."""
    if isinstance(value, tuple):
        return set().union(*(filled(item) for item in value))
    if not isinstance(value, BaseModel):
        return set()
    found: set[tuple[str, str]] = set()
    for field, inner in value:
        if inner is not None:
            found |= {(type(value).__name__, field)} | filled(inner)
    return found


def test_plaintext_in_the_place_of_a_box_is_not_read() -> None:
    wire = (
        '{"type":"inference_request","request_id":"a",'
        '"body":{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}}'
    )
    message = codec.decode_from_coordinator(wire)
    assert isinstance(message, InferenceRequest)
    assert message.encrypted_body is None
    assert "hi" not in repr(message)


# ---------------------------------------------------------------- types


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every scalar of a document, with the way to it. What is signed is text to us."""
    if path == ("attestation",):
        return
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def with_leaf(document: dict[str, Any], path: tuple[Any, ...], text: str) -> str:
    """The document as JSON with `text` in the place of the scalar at `path`."""
    changed = copy.deepcopy(document)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "@@here@@"
    return json.dumps(changed).replace('"@@here@@"', text)


WRONG: Final[dict[str, list[str]]] = {
    "integer": ["7.0", "7.5", "1e3", "true", '"7"', "[]", "{}", str(2**63), str(-(2**63) - 1)],
    "float": ["true", '"0.5"', "[]", "NaN", "Infinity", "1e999"],
    "bool": ["0", "1", '"true"', "[]"],
    "str": ["7", "7.5", "true", "[]", "{}"],
}


def kind_of(path: tuple[Any, ...], value: Any) -> str:
    if path[-1] in INTEGERS:
        return "integer"
    return type(value).__name__


@pytest.mark.parametrize("line", GOLDEN, ids=named)
def test_a_field_of_the_wrong_type_makes_the_whole_frame_malformed(line: dict[str, Any]) -> None:
    document = json.loads(line["wire"])
    tried = 0
    for path, value in leaves(document):
        if path == ("type",):
            continue
        for text in WRONG[kind_of(path, value)]:
            with pytest.raises(codec.MalformedFrameError):
                decode(line["direction"], with_leaf(document, path, text))
            tried += 1
    assert tried


def test_the_bounds_of_an_integer_are_those_of_64_bits() -> None:
    for figure in (2**63 - 1, -(2**63)):
        frame = f'{{"type":"heartbeat","stats":{{"requests_served":{figure}}}}}'
        message = codec.decode_from_provider(frame)
        assert f'"requests_served":{figure},' in codec.encode(message)


def test_a_float_may_be_spelt_as_an_integer() -> None:
    message = codec.decode_from_provider('{"type":"register","hardware":{"memory_available_gb":8}}')
    assert isinstance(message, Register)
    assert message.hardware.memory_available_gb == 8.0


@pytest.mark.parametrize("line", GOLDEN, ids=named)
def test_null_means_absent_in_every_place(line: dict[str, Any]) -> None:
    document = json.loads(line["wire"])
    required = {"type", "request_id", "ephemeral_public_key", "ciphertext", "id", "model"}
    for path, _ in leaves(document):
        if path[-1] in required or isinstance(path[-1], int):
            continue
        absent = copy.deepcopy(document)
        inner: Any = absent
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        null = with_leaf(document, path, "null")
        direction = line["direction"]
        assert decode(direction, null) == decode(direction, json.dumps(absent))


def test_a_frame_of_millions_of_values_is_malformed_before_it_is_parsed() -> None:
    for piece in ("[],", "0,", "{},"):
        frame = '{"type":"cancel","request_id":"a","x":[' + piece * codec.MAX_FRAME_VALUES + "0]}"
        with pytest.raises(codec.MalformedFrameError, match="ignored: too many values"):
            codec.decode_from_coordinator(frame)
