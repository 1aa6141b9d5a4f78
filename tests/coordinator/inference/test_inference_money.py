"""Every way a request can end, and the exact money of each.

Prices: 50 000 in, 200 000 out. `usage=(1000, 2000)` costs 50 + 400 = 450 of the 830 reserved:
4000 tokens of answer, and every byte of the request as a token of the prompt.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from darkbloom_provider.coordinator.ledger import reservations
from darkbloom_provider.coordinator.settings import Limits, Policy
from support.network import CHAT, CREDIT, QUICK, chat, network, said
from support.scripted_provider import MODEL, WALLET, Job, scripted_provider


async def answer(job: Job) -> None:
    """Completes whatever it is asked, streamed or not."""
    await job.accept()
    if job.body.get("stream"):
        for word in ("Hel", "lo"):
            await job.say(word)
    else:
        await job.answer("Hello", usage=(1000, 2000))
    await job.complete(1000, 2000)


async def silent(job: Job) -> None:
    del job


async def accept_only(job: Job) -> None:
    await job.accept()


async def test_a_completed_answer_costs_its_tokens_and_the_owner_gets_all_of_it(
    tmp_path: Path,
) -> None:
    async with network(tmp_path) as net:
        token, owner = await net.link()
        async with scripted_provider(net.ws_url, answer, auth_token=token) as provider:
            reply = await net.ask()
            assert reply.status_code == 200
            assert reply.json()["choices"][0]["message"]["content"] == "Hello"
            # Read at once after the reply: the books were closed before it.
            assert await net.spent() == 450
            assert await net.balance(owner) == 450
            job_id = reply.headers["x-inference-job-id"]
            assert provider.jobs[job_id].body["messages"] == chat()["messages"]
            await net.until(lambda: provider.cancels == [job_id])


async def test_a_stream_ends_with_done_and_the_same_money(tmp_path: Path) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        response, payloads = await net.stream()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-provider-chip"] == "Apple M4 Max"
        assert payloads[-1] == "[DONE]"
        assert said(payloads) == "Hello"
        assert await net.spent() == 450
        assert await net.balance(WALLET) == 450


async def test_a_platform_fee_is_split_off_without_losing_a_micro_dollar(tmp_path: Path) -> None:
    async with (
        network(tmp_path, policy=Policy(fee_percent=5)) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        await net.ask()
        assert await net.spent() == 450
        assert await net.balance(WALLET) == 428
        assert await net.balance("platform") == 22


async def test_a_completion_sent_twice_is_paid_once(tmp_path: Path) -> None:
    async def twice(job: Job) -> None:
        await job.answer("Hello", usage=(1000, 2000))
        await job.complete(1000, 2000)
        await job.complete(9000, 9000)
        await job.provider.heartbeat(status="serving")

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, twice, wallet_address=WALLET),
    ):
        await net.ask()
        [session] = net.coordinator.hub.registry
        await net.until(lambda: session.status == "serving")
        assert (await net.spent(), await net.balance(WALLET)) == (450, 450)
        assert await net.job_states() == ["settled"]


async def test_claimed_tokens_beyond_the_reservation_are_clamped(tmp_path: Path) -> None:
    async def greedy(job: Job) -> None:
        await job.answer("Hello", usage=(1, 1))
        await job.complete(10_000_000, 10_000_000)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, greedy, wallet_address=WALLET),
    ):
        await net.ask()
        assert (await net.spent(), await net.balance(WALLET)) == (830, 830)


async def test_the_owner_is_paid_in_full_for_a_prompt_with_a_token_a_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = "1234567890" * 4_000
    template = 30

    async def count_every_byte(job: Job) -> None:
        await job.answer("Hello", usage=(len(digits) + template, 4000))
        await job.complete(len(digits) + template, 4000)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, count_every_byte, wallet_address=WALLET),
    ):
        assert (await net.ask(content=digits)).status_code == 200
        wages = 40_030 * 50_000 // 10**6 + 4000 * 200_000 // 10**6
        assert (await net.spent(), await net.balance(WALLET)) == (wages, wages)
        assert "job_cost_clamped" not in capsys.readouterr().out


async def test_without_a_provider_the_reservation_comes_back(tmp_path: Path) -> None:
    async with network(tmp_path, timing=replace(QUICK, queue_wait=0.02)) as net:
        reply = await net.ask()
        assert reply.status_code == 503
        assert reply.json()["error"]["type"] == "model_not_available"
        assert "queue timeout" in reply.json()["error"]["message"]
        assert await net.spent() == 0
        assert await net.job_states() == ["refunded"]


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async with network(tmp_path, limits=Limits(queue_per_model=0)) as net:
        reply = await net.ask()
        assert reply.status_code == 503
        assert await net.spent() == 0


async def test_a_consumer_without_credit_is_told_so_and_nothing_is_asked(tmp_path: Path) -> None:
    async with (
        network(tmp_path, credit=829) as net,
        scripted_provider(net.ws_url, answer) as provider,
    ):
        reply = await net.ask()
        assert reply.status_code == 402
        assert reply.json()["error"]["type"] == "insufficient_funds"
        assert await net.balance() == 829
        assert provider.jobs == {}


async def test_when_all_providers_fail_the_last_error_is_the_answer(tmp_path: Path) -> None:
    async def overloaded(job: Job) -> None:
        await job.accept()
        await job.fail("model load failed", 503)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, overloaded, wallet_address=WALLET) as one,
        scripted_provider(net.ws_url, overloaded) as two,
    ):
        await net.until(lambda: net.verified() == 2)
        reply = await net.ask()
        assert reply.status_code == 503
        assert reply.json()["error"] == {
            "type": "provider_error",
            "message": "model load failed",
        }
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)
        assert len(one.jobs) == len(two.jobs) == 1
        assert [s.jobs_failed for s in net.coordinator.hub.registry] == [1, 1]


async def test_a_retry_pays_the_finisher_only_and_late_words_of_the_first_change_nothing(
    tmp_path: Path,
) -> None:
    failed: list[Job] = []

    async def fail_once(job: Job) -> None:
        if not failed:
            failed.append(job)
            await job.fail()
            return
        await failed[0].say("too late")
        await failed[0].complete(4000, 4000)
        await answer(job)

    async with network(tmp_path) as net:
        other = "0x" + "ab" * 20
        async with (
            scripted_provider(net.ws_url, fail_once, wallet_address=WALLET) as one,
            scripted_provider(net.ws_url, fail_once, wallet_address=other) as two,
        ):
            await net.until(lambda: net.verified() == 2)
            reply = await net.ask()
            assert reply.status_code == 200
            assert set(one.jobs).isdisjoint(two.jobs)
            finisher = other if failed[0].provider is one else WALLET
            assert await net.spent() == 450
            assert await net.balance(finisher) == 450
            assert await net.balance(WALLET) + await net.balance(other) == 450
            assert await net.job_states() == ["settled"]


async def test_a_silent_provider_is_passed_over_after_the_acceptance_window(
    tmp_path: Path,
) -> None:
    async with (
        network(tmp_path, timing=replace(QUICK, accept=0.05)) as net,
        scripted_provider(net.ws_url, silent) as provider,
    ):
        reply = await net.ask()
        assert reply.status_code == 504
        assert reply.json()["error"]["type"] == "provider_error"
        assert await net.spent() == 0
        await net.until(lambda: provider.cancels == list(provider.jobs))


async def test_an_accepted_request_may_take_longer_than_the_window(tmp_path: Path) -> None:
    async def slow(job: Job) -> None:
        await job.accept()
        await asyncio.sleep(0.2)
        await answer(job)

    async with (
        network(tmp_path, timing=replace(QUICK, accept=0.1)) as net,
        scripted_provider(net.ws_url, slow),
    ):
        assert (await net.ask()).status_code == 200


async def test_leaving_before_the_first_chunk_costs_nothing(tmp_path: Path) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, accept_only, wallet_address=WALLET) as provider,
    ):
        request = asyncio.create_task(net.ask())
        await net.until(lambda: bool(provider.jobs))
        request.cancel()
        await net.idle()
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)
        await net.until(lambda: provider.cancels == list(provider.jobs))


async def test_leaving_while_queued_costs_nothing(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        request = asyncio.create_task(net.ask())
        await net.until(lambda: net.coordinator.hub.requests.count == 1)
        request.cancel()
        await net.idle()
        assert await net.job_states() in (["refunded"], [])
        assert await net.spent() == 0


@pytest.mark.parametrize(
    ("counted", "cost"),
    [
        # Three chunks without counts: 8 estimated prompt tokens (0) and 3 tokens (0.6 -> 0).
        (False, 0),
        # The provider's running count: 1000 in (50) and 1500 out (300).
        (True, 350),
    ],
)
async def test_leaving_mid_stream_charges_what_was_relayed_and_pays_the_owner(
    tmp_path: Path, *, counted: bool, cost: int
) -> None:
    async def three_pieces(job: Job) -> None:
        for number in (1, 2, 3):
            await job.say(f"{number} ", usage=(1000, 500 * number) if counted else None)
        await job.cancelled.wait()
        # Whatever comes after the cancel is worth nothing.
        await job.say("more", usage=(1000, 4000))
        await job.complete(1000, 4000)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, three_pieces, wallet_address=WALLET) as provider,
    ):
        async with net.http.stream("POST", CHAT, json=chat(stream=True)) as response:
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if "3 " in text:
                    break
        await net.idle()
        assert (await net.spent(), await net.balance(WALLET)) == (cost, cost)
        assert await net.job_states() == ["partial"]
        await net.until(lambda: provider.cancels == list(provider.jobs))


async def test_one_token_per_chunk_is_charged_where_nobody_counts(tmp_path: Path) -> None:
    async def many(job: Job) -> None:
        for number in range(50):
            await job.say(f"{number} ")
        await job.cancelled.wait()

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, many, wallet_address=WALLET),
    ):
        async with net.http.stream("POST", CHAT, json=chat(stream=True)) as response:
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if '"49 "' in text:
                    break
        await net.idle()
        # 50 tokens at 200 000 per million are 10 micro-USD.
        assert (await net.spent(), await net.balance(WALLET)) == (10, 10)


@pytest.mark.parametrize("how", ["error", "disconnect", "plaintext", "wrong key", "broken box"])
async def test_a_provider_that_fails_mid_stream_earns_nothing(tmp_path: Path, how: str) -> None:
    async def half(job: Job) -> None:
        await job.say("half", usage=(1000, 2000))
        match how:
            case "error":
                await job.fail("engine failed", 500)
            case "disconnect":
                await job.provider.connection.close()
            case "plaintext":
                await job.chunk_of(None)
            case "wrong key":
                payload = job.channel.payload(b"data: {}")
                await job.chunk_of(payload.model_copy(update={"ephemeral_public_key": "A" * 44}))
            case "broken box":
                payload = job.channel.payload(b"data: {}")
                cut = payload.ciphertext[:20]
                await job.chunk_of(payload.model_copy(update={"ciphertext": cut}))

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, half, wallet_address=WALLET),
    ):
        response, payloads = await net.stream()
        assert response.status_code == 200
        assert said(payloads[:-1]) == "half"
        assert json.loads(payloads[-1])["error"]["type"] == "provider_error"
        assert "[DONE]" not in payloads
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)
        assert await net.job_states() == ["refunded"]


@pytest.mark.parametrize("how", ["plaintext", "broken box"])
async def test_an_invalid_chunk_makes_its_sender_untrusted_until_the_next_heartbeat(
    tmp_path: Path, how: str
) -> None:
    async def invalid(job: Job) -> None:
        payload = job.channel.payload(b"data: {}")
        await job.chunk_of(
            None
            if how == "plaintext"
            else payload.model_copy(update={"ciphertext": payload.ciphertext[::-1]})
        )

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, invalid) as provider,
    ):
        reply = await net.ask()
        assert reply.status_code == 502
        [session] = net.coordinator.hub.registry
        assert session.status == "untrusted"
        await provider.heartbeat()
        await net.until(lambda: session.status == "online")
        assert await net.spent() == 0


async def test_silence_mid_stream_ends_in_a_timeout_event_and_a_refund(tmp_path: Path) -> None:
    async def one_piece(job: Job) -> None:
        await job.say("half")

    async with (
        network(tmp_path, timing=replace(QUICK, idle=0.1)) as net,
        scripted_provider(net.ws_url, one_piece, wallet_address=WALLET),
    ):
        _, payloads = await net.stream()
        assert json.loads(payloads[-1])["error"]["type"] == "timeout"
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)


async def test_a_failure_after_the_first_piece_of_a_plain_answer_is_a_status(
    tmp_path: Path,
) -> None:
    async def half(job: Job) -> None:
        await job.say("half")
        await job.fail("engine failed", 500)

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, half, wallet_address=WALLET),
    ):
        reply = await net.ask()
        assert reply.status_code == 500
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)


async def test_a_slow_reader_loses_nothing_that_fitted_and_is_then_told(tmp_path: Path) -> None:
    size, count = 64 * 1024, 400

    async def flood(job: Job) -> None:
        for number in range(count):
            await job.chunk("data: " + json.dumps({"n": number, "pad": "x" * size}))
        await job.complete(1, 1)

    limits = Limits(job_buffer_bytes=8 * size)
    async with (
        network(tmp_path, limits=limits) as net,
        scripted_provider(net.ws_url, flood, wallet_address=WALLET) as provider,
    ):
        async with net.http.stream("POST", CHAT, json=chat(stream=True)) as response:
            # Read nothing until the coordinator has given up on us.
            await net.until(lambda: bool(provider.cancels))
            text = (await response.aread()).decode()
        payloads = [json.loads(line[6:]) for line in text.split("\n\n") if line]
        assert payloads[-1]["error"]["type"] == "timeout"
        numbers = [payload["n"] for payload in payloads[:-1]]
        assert numbers == list(range(len(numbers)))
        assert 8 <= len(numbers) < count
        await net.idle()
        relayed = len(numbers) * 200_000 // 1_000_000
        assert (await net.spent(), await net.balance(WALLET)) == (relayed, relayed)
        assert await net.job_states() == ["partial"]


async def test_stopping_mid_stream_ends_it_with_an_error_and_gives_the_money_back(
    tmp_path: Path,
) -> None:
    async def endless(job: Job) -> None:
        await job.say("half", usage=(1000, 2000))
        await job.cancelled.wait()

    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, endless, wallet_address=WALLET),
    ):
        async with net.http.stream("POST", CHAT, json=chat(stream=True)) as response:
            pieces = response.aiter_text()
            text = await anext(pieces)
            await net.coordinator.hub.stop()
            text += "".join([piece async for piece in pieces])
        assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]
        assert "[DONE]" not in text
        assert (await net.spent(), await net.balance(WALLET)) == (0, 0)
        assert (await net.ask()).status_code == 503
    async with network(tmp_path) as net:
        assert await net.balance() == CREDIT


async def test_a_reservation_left_by_a_killed_coordinator_is_refunded_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with network(tmp_path) as net:
        account = net.account
        now = net.coordinator.services.clock()
        await net.coordinator.services.db.write(
            reservations.Reserve(
                reservation_id="r", account_id=account, model=MODEL, amount=800, now=now
            )
        )
        assert await net.spent() == 800
    async with network(tmp_path) as net:
        assert net.account == account
        assert await net.spent() == 0
        assert await net.job_states() == ["refunded"]


async def test_many_requests_at_once_settle_to_the_micro_dollar(tmp_path: Path) -> None:
    async with (
        network(tmp_path) as net,
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
        scripted_provider(net.ws_url, answer, wallet_address=WALLET),
    ):
        replies = await asyncio.gather(*(net.ask() for _ in range(12)))
        assert {reply.status_code for reply in replies} == {200}
        assert (await net.spent(), await net.balance(WALLET)) == (12 * 450, 12 * 450)


async def test_a_token_that_was_revoked_earns_for_the_wallet_from_then_on(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        token, owner = await net.link()
        async with scripted_provider(net.ws_url, answer, auth_token=token, wallet_address=WALLET):
            await net.ask()
            revoked = await net.http.post(
                "/v1/device/revoke", headers={"Authorization": f"Bearer {token}"}
            )
            assert revoked.status_code == 200
            await net.ask()
            assert (await net.balance(owner), await net.balance(WALLET)) == (450, 450)


async def test_wallet_earnings_move_to_the_account_when_the_machine_links(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        async with scripted_provider(net.ws_url, answer, wallet_address=WALLET):
            await net.ask()
        token, owner = await net.link()
        async with scripted_provider(net.ws_url, answer, auth_token=token, wallet_address=WALLET):
            await net.ask()
            assert (await net.balance(owner), await net.balance(WALLET)) == (900, 0)


async def test_a_device_token_buys_no_inference(tmp_path: Path) -> None:
    async with network(tmp_path) as net:
        token, _ = await net.link()
        reply = await net.http.post(CHAT, json=chat(), headers={"Authorization": f"Bearer {token}"})
        assert reply.status_code == 401
