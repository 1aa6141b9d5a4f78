from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from darkbloom_provider import logs
from darkbloom_provider.engine.errors import EngineClosedError
from darkbloom_provider.errors import ModelError
from darkbloom_provider.host.enclave import EnclaveError
from darkbloom_provider.protocol.boxes import Channel, KeyPair
from darkbloom_provider.protocol.messages import EncryptedPayload, InferenceRequest, Usage
from darkbloom_provider.protocol.signed import SoftwareKey, response_hash, verify
from support.daemon_parts import (
    MODEL,
    NOW,
    PROMPT_TOKENS,
    Desk,
    FakeEngine,
    chat,
    desk,
    not_loaded,
)
from support.manual_time import settle


def _request(d: Desk, request_id: str, *, stream: bool = True) -> InferenceRequest:
    return InferenceRequest(request_id=request_id, encrypted_body=d.sealed(chat(stream=stream)))


# ---------------------------------------------------------------- answers


async def test_a_streamed_answer_has_role_first_reason_last_and_usage_if_asked_for() -> None:
    async with desk() as d:
        reply = d.send(chat(stream=True, stream_options={"include_usage": True}))
        await reply.over.wait()
    first, second, end, usage = reply.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "Hel"}
    assert second["choices"][0]["delta"] == {"content": "lo"}
    assert end["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 17, "completion_tokens": 2, "total_tokens": 19}
    assert {event["id"] for event in reply.events} == {"chatcmpl-job-1"}
    assert all(event["model"] == MODEL for event in reply.events)
    assert all(event["created"] == int(NOW.timestamp()) for event in reply.events)
    assert reply.accepts == 1


class EnclaveOf:
    """A key that does with a message what a test says."""

    public_text = "key"

    def __init__(self, sign: Callable[[bytes], str]) -> None:
        self.sign = sign


async def test_an_answer_is_signed_where_there_is_an_enclave() -> None:
    key = SoftwareKey()
    async with desk(enclave_key=key) as d:
        reply = d.send(chat(stream=True))
        await reply.over.wait()
    ((_, digest),) = reply.completions
    (signature,) = reply.signatures
    assert digest is not None
    assert signature is not None
    assert verify(key.public_text, signature, digest.encode())


async def test_an_answer_without_an_enclave_carries_no_signature() -> None:
    async with desk() as d:
        reply = d.send(chat(stream=True))
        await reply.over.wait()
    assert reply.signatures == [None]


async def test_an_enclave_that_refuses_costs_no_money() -> None:
    def refuse(_message: bytes) -> str:
        raise EnclaveError("The Secure Enclave does not sign")

    async with desk(enclave_key=EnclaveOf(refuse)) as d:
        reply = d.send(chat(stream=True))
        await reply.over.wait()
    assert reply.signatures == [None]
    assert [record.job_id for record in d.books.records] == ["job-1"]


async def test_without_include_usage_no_usage_event_is_sent() -> None:
    async with desk() as d:
        reply = d.send(chat(stream=True))
        await reply.over.wait()
    assert [bool(event["choices"]) for event in reply.events] == [True, True, True]


async def test_every_chunk_carries_the_running_token_counts() -> None:
    async with desk() as d:
        reply = d.send(chat(stream=True))
        await reply.over.wait()
    counts = [usage.completion_tokens for usage in reply.usages]
    assert counts == [1, 2, 2]
    assert {usage.prompt_tokens for usage in reply.usages} == {PROMPT_TOKENS}


async def test_an_answer_that_does_not_stream_is_exactly_one_chunk() -> None:
    async with desk() as d:
        reply = d.send(chat())
        await reply.over.wait()
    (event,) = reply.events
    assert event["object"] == "chat.completion"
    assert event["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert event["usage"]["total_tokens"] == 19


async def test_an_empty_answer_still_names_its_role_and_its_end() -> None:
    engine = FakeEngine()
    engine.pieces = ()
    async with desk(engine) as d:
        reply = d.send(chat(stream=True))
        await reply.over.wait()
    first, end = reply.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert end["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [True, False])
async def test_the_completion_carries_the_engines_counts_and_the_hash_of_every_chunk(
    stream: bool,
) -> None:
    async with desk() as d:
        reply = d.send(chat(stream=stream))
        await reply.over.wait()
    ((usage, digest),) = reply.completions
    assert usage == Usage(prompt_tokens=PROMPT_TOKENS, completion_tokens=2)
    assert digest == response_hash("job-1", 2, "".join(reply.texts))


async def test_what_the_consumer_set_reaches_the_engine() -> None:
    async with desk() as d:
        reply = d.send(
            chat(max_completion_tokens=7, temperature=0, top_k=3, seed=5, stop=["a", "b"])
        )
        await reply.over.wait()
    (request,) = d.engine.requests
    assert (request.model, request.max_tokens, request.temperature) == (MODEL, 7, 0)
    assert (request.top_k, request.seed, request.stop) == (3, 5, ("a", "b"))
    assert request.messages == ({"role": "user", "content": "hi"},)


# ---------------------------------------------------------------- bad requests


def _boxes() -> dict[str, object]:
    stranger = KeyPair.generate()
    elsewhere = Channel(stranger, KeyPair.generate().public_text)
    good = elsewhere.payload(b"{}")
    return {
        "missing": None,
        "for somebody else": good,
        "truncated": good.model_copy(update={"ciphertext": good.ciphertext[:40]}),
        "empty": good.model_copy(update={"ciphertext": ""}),
        "not base64": good.model_copy(update={"ciphertext": "{}"}),
        "bad key": good.model_copy(update={"ephemeral_public_key": "AAAA"}),
        "low order key": good.model_copy(update={"ephemeral_public_key": "A" * 43 + "="}),
    }


@pytest.mark.parametrize("name", _boxes())
async def test_a_box_that_cannot_be_opened_gets_400_and_the_daemon_lives(name: str) -> None:
    async with desk() as d:
        box = _boxes()[name]
        assert box is None or isinstance(box, EncryptedPayload)
        bad = d.send(box, "bad")
        await bad.over.wait()
        good = d.send(chat(), "good")
        await good.over.wait()
    ((message, code),) = bad.errors
    assert code == 400
    assert message in {"the request is not encrypted", "the request cannot be opened"}
    assert bad.texts == []
    assert bad.accepts == 0
    assert len(good.completions) == 1


def _places(box: EncryptedPayload) -> dict[str, int]:
    """The bytes of a box where something else begins or ends."""
    last = len(base64.b64decode(box.ciphertext)) - 1
    return {
        "nonce, first": 0,
        "nonce, last": 23,
        "tag, first": 24,
        "tag, last": 39,
        "text, first": 40,
        "text, middle": (40 + last) // 2,
        "text, last": last,
    }


def _altered(box: EncryptedPayload) -> dict[str, EncryptedPayload]:
    """Every way to damage a box, by name."""
    raw = base64.b64decode(box.ciphertext)
    key = base64.b64decode(box.ephemeral_public_key)

    def sealed(content: bytes) -> EncryptedPayload:
        text = base64.b64encode(content).decode()
        return box.model_copy(update={"ciphertext": text})

    def sent_by(public: bytes) -> EncryptedPayload:
        text = base64.b64encode(public).decode()
        return box.model_copy(update={"ephemeral_public_key": text})

    found: dict[str, EncryptedPayload] = {}
    for name, place in _places(box).items():
        for bit in (0, 7):
            flipped = bytearray(raw)
            flipped[place] ^= 1 << bit
            found[f"bit {bit} of {name}"] = sealed(bytes(flipped))
        found[f"cut before {name}"] = sealed(raw[:place])
    for place in (0, 15, 31):
        flipped = bytearray(key)
        flipped[place] ^= 1
        found[f"key with a flipped bit in byte {place}"] = sent_by(bytes(flipped))
    return found | {
        "one byte more": sealed(raw + b"\0"),
        "sent by another": sent_by(base64.b64decode(KeyPair.generate().public_text)),
        "key cut": sent_by(key[:31]),
        "key with a byte more": sent_by(key + b"\0"),
        "plaintext": box.model_copy(update={"ciphertext": '{"model":"m"}'}),
        "plaintext in base64": sealed(b'{"model":"m","messages":[]}'),
        "URL-safe alphabet": box.model_copy(update={"ciphertext": "-_" + box.ciphertext[2:]}),
        "without padding": sealed(raw + b"\0").model_copy(
            update={"ciphertext": base64.b64encode(raw + b"\0" * (2 - len(raw) % 3)).decode()[:-1]}
        ),
    }


async def test_a_box_that_was_altered_in_any_place_gets_400_before_anything_is_accepted() -> None:
    async with desk() as d:
        for number, (name, box) in enumerate(_altered(d.sealed(chat())).items()):
            reply = d.send(box, f"job-{number}")
            await reply.over.wait()
            assert reply.errors == [("the request cannot be opened", 400)], name
            assert (reply.accepts, reply.texts) == (0, []), name
        assert d.engine.requests == []
        good = d.send(chat(), "good")
        await good.over.wait()
    assert len(good.completions) == 1


async def test_a_box_around_nothing_is_opened_and_its_body_refused() -> None:
    async with desk() as d:
        reply = d.send(b"")
        await reply.over.wait()
    assert [code for _, code in reply.errors] == [400]
    assert reply.accepts == 1


@pytest.mark.parametrize("respelt", [False, True])
async def test_a_box_that_is_replayed_under_another_id_is_served_once(respelt: bool) -> None:
    async with desk() as d:
        box = d.sealed(chat())
        first = d.send(box, "first")
        await first.over.wait()
        if respelt:  # line breaks in base64 mean nothing
            text = "\n".join(box.ciphertext)
            box = box.model_copy(update={"ciphertext": text})
        second = d.send(box, "second")
        await second.over.wait()
    assert len(first.completions) == 1
    assert second.errors == [("the request was sent before", 400)]
    assert second.accepts == 0
    assert [record.job_id for record in d.books.records] == ["first"]


async def test_a_damaged_copy_does_not_keep_the_true_box_from_being_served() -> None:
    async with desk() as d:
        box = d.sealed(chat())
        raw = bytearray(base64.b64decode(box.ciphertext))
        raw[-1] ^= 1
        damaged = box.model_copy(update={"ciphertext": base64.b64encode(raw).decode()})
        bad = d.send(damaged, "bad")
        await bad.over.wait()
        good = d.send(box, "good")
        await good.over.wait()
    assert len(good.completions) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"not json", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (chat(model="unknown"), 404),
        (chat(model=""), 400),
        (chat(max_tokens=0), 400),
        (chat(max_tokens=-1), 400),
        (chat(messages=[]), 400),
        (chat(n=0), 400),
        (chat(n=33), 400),
        (chat(endpoint="/v1/completions"), 400),
        (chat(endpoint="/v1/embeddings"), 400),
        (chat(endpoint="http://169.254.169.254/"), 400),
    ],
)
async def test_a_bad_body_gets_the_right_code(body: bytes | dict[str, object], code: int) -> None:
    async with desk() as d:
        reply = d.send(body)
        await reply.over.wait()
    assert [status for _, status in reply.errors] == [code]
    assert reply.accepts == 1
    assert d.engine.requests == []
    assert d.books.records == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), cut=st.integers(0, 60), flip=st.booleans())
async def test_no_body_and_no_damage_to_a_box_brings_the_runner_down(
    body: bytes, cut: int, flip: bool
) -> None:
    async with desk() as d:
        box = d.sealed(body)
        text = box.ciphertext[: len(box.ciphertext) - cut]
        text = text[::-1] if flip else text
        reply = d.send(box.model_copy(update={"ciphertext": text}))
        await reply.over.wait()
        after = d.send(chat(), "after")
        await after.over.wait()
    assert 400 <= reply.errors[0][1] < 500
    assert len(after.completions) == 1


async def test_a_refusal_of_the_engine_keeps_its_code_and_tells_no_inner_reason() -> None:
    engine = FakeEngine()
    engine.refuse = not_loaded()
    async with desk(engine) as d:
        reply = d.send(chat())
        await reply.over.wait()
    assert reply.errors == [("not in memory", 503)]


async def test_a_model_that_cannot_be_loaded_again_gets_503() -> None:
    async def prepare(_model: str) -> None:
        raise ModelError("gone", why="/secret/path")

    async with desk(prepare=prepare) as d:
        reply = d.send(chat())
        await reply.over.wait()
    assert reply.errors == [("the model could not be loaded", 503)]


async def test_neither_errors_nor_logs_show_prompt_or_completion() -> None:
    seen = io.StringIO()
    logs.configure(stream=seen, verbose=True)
    try:
        engine = FakeEngine("CANARY-OUT", ValueError("CANARY-OUT at /a/path"))
        async with desk(engine) as d:
            body = chat(messages=[{"role": "user", "content": "CANARY-IN"}], stream=True)
            reply = d.send(body)
            await reply.over.wait()
            assert "CANARY" not in repr(d.runner.__dict__) + repr(d.engine.requests)
    finally:
        logs.configure()
    assert reply.errors == [("the request could not be served", 500)]
    assert "ValueError" in seen.getvalue()
    assert "CANARY" not in seen.getvalue()
    assert d.books.records == []


async def test_an_engine_that_died_ends_the_daemon_after_the_consumer_was_told() -> None:
    engine = FakeEngine()
    engine.refuse = EngineClosedError()
    reply = None
    with pytest.RaisesGroup(EngineClosedError):
        async with desk(engine) as d:
            reply = d.send(chat())
            await asyncio.Event().wait()
    assert reply is not None
    assert [code for _, code in reply.errors] == [503]


# ---------------------------------------------------------------- cancelling


async def test_a_cancelled_job_sends_nothing_more_and_stops_the_engine() -> None:
    async with desk() as d:
        reply = d.reply()
        reply.slow = asyncio.Event()
        running = d.send(chat(stream=True), "other")
        d.runner.start(_request(d, "job-1"), reply)
        await reply.begun.wait()
        before = reply.sent
        d.runner.cancel("job-1")
        reply.close()
        await running.over.wait()
        await d.runner.idle()
        assert reply.sent == before
        assert d.engine.generations[-1].cancelled
        assert d.runner.counts().cancelled == 1
    assert [record.job_id for record in d.books.records] == ["other"]


async def test_a_job_cancelled_before_its_first_step_is_forgotten() -> None:
    async with desk() as d:
        reply = d.send(chat())
        d.runner.cancel("job-1")
        await d.runner.idle()
        assert reply.sent == 0
        assert d.runner.counts().cancelled == 1
        assert d.runner.counts().in_flight == 0


async def test_a_cancel_for_an_unknown_or_finished_job_is_silent() -> None:
    async with desk() as d:
        d.runner.cancel("never heard of")
        reply = d.send(chat())
        await reply.over.wait()
        await d.runner.idle()
        d.runner.cancel("job-1")
        await settle()
        assert d.runner.counts().cancelled == 0
    assert reply.errors == []


async def test_a_cancel_while_the_completion_leaves_does_not_lose_the_record() -> None:
    async with desk() as d:
        reply = d.reply()
        reply.completing = asyncio.Event()
        d.runner.start(_request(d, "job-1", stream=False), reply)
        await reply.at_completion.wait()
        d.runner.cancel("job-1")
        reply.completing.set()
        await d.runner.idle()
    assert len(reply.completions) == 1
    assert len(d.books.records) == 1


async def test_a_lost_connection_aborts_every_job_and_journals_none() -> None:
    gate = asyncio.Event()
    async with desk(FakeEngine(gate=gate)) as d:
        replies = [d.send(chat(stream=True), f"job-{n}") for n in range(3)]
        await settle()
        assert d.runner.in_flight() == {MODEL: 3}
        d.runner.abort_all("the connection was lost")
        await d.runner.idle()
        assert all(generation.cancelled for generation in d.engine.generations)
        assert d.runner.counts().cancelled == 3
    assert all(not reply.texts and not reply.errors for reply in replies)
    assert d.books.records == []


# ---------------------------------------------------------------- money


async def test_a_completed_job_is_reported_once_and_journalled_once() -> None:
    async with desk() as d:
        reply = d.send(chat())
        await reply.over.wait()
        await d.runner.idle()
        again = d.send(chat())
        await again.over.wait()
        counts = d.runner.counts()
    (record,) = d.books.records
    assert (record.job_id, record.model, record.finished_at) == ("job-1", MODEL, NOW)
    assert (record.prompt_tokens, record.completion_tokens) == (17, 2)
    assert record.estimate_micro_usd == 17 * 1 + 2 * 2
    assert record.provider_key == d.keys.public_text
    assert record.linked
    assert len(reply.completions) == 1
    assert again.completions == []
    assert (counts.served, counts.prompt_tokens, counts.completion_tokens) == (1, 17, 2)


async def test_a_completion_that_did_not_leave_is_not_journalled() -> None:
    async with desk() as d:
        reply = d.reply()
        reply.completing = asyncio.Event()
        d.runner.start(_request(d, "job-1", stream=False), reply)
        await reply.at_completion.wait()
        reply.close()
        await d.runner.idle()
        assert d.runner.counts().served == 0
    assert d.books.records == []


async def test_a_request_that_comes_twice_while_it_runs_is_ignored() -> None:
    gate = asyncio.Event()
    async with desk(FakeEngine(gate=gate)) as d:
        first = d.send(chat())
        second = d.send(chat())
        gate.set()
        await first.over.wait()
        await d.runner.idle()
    assert second.sent == 0
    assert len(d.engine.requests) == 1


# ---------------------------------------------------------------- bounds


async def test_a_slow_consumer_slows_only_its_own_job() -> None:
    async with desk() as d:
        slow = d.reply()
        slow.slow = asyncio.Event()
        d.runner.start(_request(d, "slow"), slow)
        await slow.begun.wait()
        quick = d.send(chat(stream=True), "quick")
        await quick.over.wait()
        assert slow.texts == []
        slow.slow.set()
        await slow.over.wait()
    assert slow.content == quick.content == "Hello"


async def test_no_text_is_made_once_a_privacy_promise_is_broken() -> None:
    kept = [True, False]
    async with desk(promises_kept=lambda: kept.pop(0)) as d:
        first = d.send(chat(stream=True))
        await first.over.wait()
        second = d.send(chat(stream=True), "job-2")
        await second.over.wait()
    assert (len(first.completions), first.errors) == (1, [])
    assert second.errors == [("the provider's security posture has changed", 503)]
    assert second.events == []
    assert [record.job_id for record in d.books.records] == ["job-1"]


async def test_one_job_too_many_is_refused_with_503() -> None:
    gate = asyncio.Event()
    async with desk(FakeEngine(gate=gate), max_jobs=2) as d:
        held = [d.send(chat(), f"job-{n}") for n in range(2)]
        refused = d.send(chat(), "job-3")
        await refused.over.wait()
        gate.set()
        for reply in held:
            await reply.over.wait()
    assert refused.errors == [("this provider is busy", 503)]
    assert refused.accepts == 0


async def test_a_flood_of_requests_costs_no_more_than_the_bound() -> None:
    gate = asyncio.Event()
    async with desk(FakeEngine(gate=gate), max_jobs=2) as d:
        before = len(asyncio.all_tasks())
        for n in range(100):
            d.send(chat(), f"job-{n}")
        assert len(asyncio.all_tasks()) - before <= 4


async def test_a_closed_runner_refuses_new_jobs_and_finishes_old_ones() -> None:
    gate = asyncio.Event()
    async with desk(FakeEngine(gate=gate)) as d:
        old = d.send(chat(), "old")
        await settle()
        d.runner.close("this provider is shutting down")
        new = d.send(chat(), "new")
        await new.over.wait()
        gate.set()
        await old.over.wait()
    assert new.errors == [("this provider is shutting down", 503)]
    assert len(old.completions) == 1


async def test_a_large_box_is_opened_off_the_event_loop() -> None:
    async with desk() as d:
        content = "x" * 300_000
        reply = d.send(chat(messages=[{"role": "user", "content": content}]))
        await reply.over.wait()
    assert d.engine.requests[0].messages == ({"role": "user", "content": content},)
