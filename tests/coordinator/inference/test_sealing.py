"""Sealed requests, as a consumer with PyNaCl makes them and reads their replies."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nacl.public
import nacl.utils
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.inference import sealing
from darkbloom_provider.coordinator.inference.sealing import (
    EnvelopeError,
    SealingKey,
    SealingKeyError,
)
from support.network import CHAT, Network, chat, network
from support.scripted_provider import MODEL, WALLET, Job, scripted_provider

SEALED = "application/eigeninference-sealed+json"
KEY = SealingKey.generate()
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/responses": {"input": "hello"},
}
every_path = pytest.mark.parametrize("path", BODIES)


@dataclass
class Sender:
    """A consumer that seals."""

    net: Network
    told: dict[str, str]
    secret: nacl.public.PrivateKey

    @property
    def box(self) -> nacl.public.Box:
        theirs = nacl.public.PublicKey(base64.b64decode(self.told["public_key"]))
        return nacl.public.Box(self.secret, theirs)

    def envelope(self, body: Any, **changes: Any) -> dict[str, Any]:
        boxed = bytes(self.box.encrypt(json.dumps(body).encode()))
        return {
            "kid": self.told["kid"],
            "ephemeral_public_key": base64.b64encode(bytes(self.secret.public_key)).decode(),
            "ciphertext": base64.b64encode(boxed).decode(),
        } | changes

    async def post(self, envelope: Any, path: str = CHAT, kind: str = SEALED) -> httpx.Response:
        return await self.net.http.post(
            path, content=json.dumps(envelope), headers={"Content-Type": kind}
        )

    def open(self, ciphertext: str) -> bytes:
        return self.box.decrypt(base64.b64decode(ciphertext))

    def read(self, reply: httpx.Response) -> Any:
        """A sealed reply's object."""
        assert reply.headers["content-type"] == SEALED
        assert reply.headers["x-eigen-sealed"] == "true"
        assert reply.headers["x-eigen-sealed-kid"] == self.told["kid"] == reply.json()["kid"]
        assert set(reply.json()) == {"kid", "ciphertext"}
        return json.loads(self.open(reply.json()["ciphertext"]))

    def events(self, reply: httpx.Response) -> list[str]:
        """A sealed stream's events, opened."""
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-eigen-sealed"] == "true"
        lines = [line for line in reply.text.split("\n\n") if line]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        return [self.open(line.removeprefix("data: ")).decode() for line in lines]


async def sender(net: Network) -> Sender:
    told = (await net.http.get("/v1/encryption-key")).json()
    return Sender(net, told, nacl.public.PrivateKey.generate())


async def answer(job: Job) -> None:
    if job.body.get("stream"):
        for word in ("Hel", "lo"):
            await job.say(word, usage=(1000, 1000))
    else:
        await job.answer("Hello", usage=(1000, 2000))
    await job.complete(1000, 2000)


async def fail(job: Job) -> None:
    await job.fail("engine failed", 500)


def body(path: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 4000} | BODIES[path] | more


async def test_the_key_is_told_to_anybody_and_may_be_kept_for_five_minutes(tmp_path: Path) -> None:
    async with network(tmp_path) as net, httpx.AsyncClient() as stranger:
        reply = await stranger.get(f"{net.coordinator.base_url}/v1/encryption-key")
    told = reply.json()
    public = base64.b64decode(told["public_key"])
    assert len(public) == 32
    assert told["kid"] == hashlib.sha256(public).hexdigest()[:16]
    assert told["algorithm"] == "x25519-nacl-box"
    assert reply.headers["cache-control"] == "public, max-age=300"


async def test_the_key_is_the_same_after_a_restart_and_its_owners_alone(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        async with network(tmp_path) as net:
            keys.append((await net.http.get("/v1/encryption-key")).json())
    assert keys[0] == keys[1]
    assert (tmp_path / sealing.KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for damaged in ("", "short", "\u00fc", base64.b64encode(b"x" * 31).decode()):
        (tmp_path / sealing.KEY_FILE).write_text(damaged)
        with pytest.raises(SealingKeyError) as caught:
            SealingKey.load_or_create(tmp_path)
        assert caught.value.next_step


@every_path
async def test_a_sealed_request_gets_a_sealed_answer_for_the_same_money(
    tmp_path: Path, path: str
) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        one = await sender(net)
        reply = await one.post(one.envelope(body(path)), path)
        assert reply.status_code == 200
        assert b"Hello" not in reply.content
        assert "Hello" in json.dumps(one.read(reply))
        assert reply.headers["x-inference-job-id"]
        assert (await net.spent(), await net.balance(WALLET)) == (450, 450)


@every_path
async def test_a_sealed_stream_is_sealed_event_by_event(tmp_path: Path, path: str) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        one = await sender(net)
        kind = f"{SEALED.upper()}; charset=utf-8"
        reply = await one.post(one.envelope(body(path, stream=True), kid=""), path, kind)
        assert "Hel" not in reply.text
        events = one.events(reply)
        assert len(events) > 2
        assert any('"Hel"' in event for event in events)
        if path == CHAT:
            assert events[-1] == "data: [DONE]"
        assert await net.spent() == 450


@every_path
async def test_errors_after_the_opening_are_sealed_too(tmp_path: Path, path: str) -> None:
    async with network(tmp_path) as net, scripted_provider(net.ws_url, fail):
        one = await sender(net)
        for wrong, status in (
            ({}, 500),
            ({"model": "unknown"}, 404),
            ({"max_tokens": -1}, 400),
            ({"max_tokens": 10**9}, 402),
        ):
            reply = await one.post(one.envelope(body(path, **wrong)), path)
            assert reply.status_code == status
            assert one.read(reply)["error"]["message"]
        assert await net.spent() == 0


async def test_a_body_that_is_no_json_inside_is_told_sealed(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        one = await sender(net)
        reply = await one.post(one.envelope("not an object"))
        assert (reply.status_code, one.read(reply)["error"]["type"]) == (
            400,
            "invalid_request_error",
        )


async def test_a_failure_amid_a_sealed_stream_is_a_sealed_event(tmp_path: Path) -> None:
    async def half(job: Job) -> None:
        await job.say("half")
        await job.fail("engine failed", 500)

    async with network(tmp_path) as net, scripted_provider(net.ws_url, half):
        one = await sender(net)
        events = one.events(await one.post(one.envelope(chat(stream=True))))
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "provider_error"
        assert await net.spent() == 0


@every_path
async def test_the_failures_of_envelopes_stand_in_the_clear(tmp_path: Path, path: str) -> None:
    async with network(tmp_path) as net:
        one = await sender(net)
        good = one.envelope(body(path))
        stranger = Sender(net, one.told, nacl.public.PrivateKey.generate())
        foreign = good | {"ephemeral_public_key": stranger.envelope({})["ephemeral_public_key"]}
        for envelope, kind in (
            ([], "invalid_sealed_envelope"),
            (good | {"ciphertext": "!"}, "invalid_sealed_envelope"),
            (good | {"ephemeral_public_key": "AAAA"}, "invalid_sealed_envelope"),
            (good | {"kid": "0" * 16}, "kid_mismatch"),
            (foreign, "decryption_failed"),
        ):
            reply = await one.post(envelope, path)
            assert reply.headers["content-type"] == "application/json"
            assert "x-eigen-sealed" not in reply.headers
            assert (reply.status_code, reply.json()["error"]["type"]) == (400, kind)
            assert reply.headers["x-request-id"]
        assert await net.job_states() == []


async def test_who_may_not_call_is_told_so_in_the_clear(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        one = await sender(net)
        net.http.headers["authorization"] = "Bearer wrong"
        reply = await one.post(one.envelope(chat()))
        assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")


def test_without_a_key_there_is_no_sealing() -> None:
    with pytest.raises(EnvelopeError) as asked:
        sealing.told(None)
    with pytest.raises(EnvelopeError) as sent:
        sealing.opened(b"{}", None)
    for caught in (asked, sent):
        assert (caught.value.status, caught.value.type) == (503, "encryption_unavailable")


# ---------------------------------------------------------------- broken envelopes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "kid": st.just("") | st.just(KEY.kid) | JSON,
        "ephemeral_public_key": JSON
        | st.binary(max_size=40).map(lambda b: base64.b64encode(b).decode()),
        "ciphertext": JSON | st.binary(max_size=80).map(lambda b: base64.b64encode(b).decode()),
    },
)
KINDS = {"invalid_sealed_envelope", "kid_mismatch", "decryption_failed"}


@given(st.binary(max_size=200) | (JSON | FIELDS).map(lambda value: json.dumps(value).encode()))
def test_no_envelope_breaks_the_opening(body: bytes) -> None:
    with pytest.raises(EnvelopeError) as caught:
        sealing.opened(body, KEY)
    assert caught.value.status == 400
    assert caught.value.type in KINDS


@given(st.binary(max_size=300), st.integers(min_value=0), st.integers(0, 7))
def test_one_bit_of_difference_keeps_it_closed(content: bytes, at: int, bit: int) -> None:
    secret = nacl.public.PrivateKey.generate()
    theirs = nacl.public.PublicKey(base64.b64decode(KEY.pair.public_text))
    boxed = bytearray(nacl.public.Box(secret, theirs).encrypt(content))

    def envelope() -> bytes:
        public = base64.b64encode(bytes(secret.public_key)).decode()
        text = base64.b64encode(bytes(boxed)).decode()
        return json.dumps({"ephemeral_public_key": public, "ciphertext": text}).encode()

    assert sealing.opened(envelope(), KEY)[0] == content
    boxed[at % len(boxed)] ^= 1 << bit
    with pytest.raises(EnvelopeError) as caught:
        sealing.opened(envelope(), KEY)
    assert caught.value.type == "decryption_failed"
