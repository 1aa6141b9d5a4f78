"""The whole path with the real model: what is paid is the tokens times the price, exactly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkbloom_provider.protocol import money
from darkbloom_provider.protocol.money import DEFAULT_PRICE
from support.network import CHAT, CREDIT, PATIENT, events, network, said
from support.processes import darkbloom, running, until
from support.provider_home import MODEL, journal_rows, link, provider_home, until_served


def body(question: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 24} | changes


async def chunks(reply: httpx.Response) -> AsyncGenerator[str, None]:
    async for line in reply.aiter_lines():
        if line.startswith("data: "):
            yield line


@pytest.mark.model
async def test_real_answers_earn_the_tokens_times_the_price(
    tmp_path: Path, home_root: Path, smollm2: Path
) -> None:
    async with network(tmp_path / "coordinator", timing=PATIENT) as net:
        home = provider_home(home_root, net.ws_url, smollm2)
        token, owner = await net.link()
        link(home, net.ws_url, token, owner)
        with running("provider", "serve", home=home.root) as provider:
            await until_served(net, provider)

            question = body("What is the capital of France?")
            whole = (await net.http.post(CHAT, json=question)).json()
            assert whole["choices"][0]["message"]["content"] == "The capital of France is Paris."

            options = {"stream": True, "stream_options": {"include_usage": True}}
            async with net.http.stream("POST", CHAT, json=question | options) as reply:
                streamed = events((await reply.aread()).decode())
            assert said(streamed) == "The capital of France is Paris."
            assert streamed[-1] == "[DONE]"
            assert json.loads(streamed[-2])["usage"] == whole["usage"]

            story = body("Tell me a long story.", stream=True, max_tokens=200)
            async with (
                net.http.stream("POST", CHAT, json=story) as reply,
                contextlib.aclosing(chunks(reply)) as relayed,
            ):
                for _ in range(5):
                    await anext(relayed)
            await net.idle()

            usage = (await net.http.get("/v1/payments/usage")).json()["usage"]
            earned = await asyncio.to_thread(darkbloom, "earnings", "--json", home=home.root)
            printed = await asyncio.to_thread(darkbloom, "earnings", home=home.root)

        assert len(usage) == 3
        for job in usage:
            tokens = (job["prompt_tokens"], job["completion_tokens"])
            assert job["cost_micro_usd"] == money.cost(*tokens, DEFAULT_PRICE)
        costs = {job["job_id"]: job["cost_micro_usd"] for job in usage}
        counts = whole["usage"]
        complete = [job for job in usage if job["completion_tokens"] == counts["completion_tokens"]]
        assert [job["prompt_tokens"] for job in complete] == [counts["prompt_tokens"]] * 2
        (left,) = [job for job in usage if job not in complete]
        assert 5 <= left["completion_tokens"] < 200
        assert left["prompt_tokens"] > 10

        total = sum(costs.values())
        assert await net.balance() == CREDIT - total
        assert await net.balance(owner) == total
        assert await net.job_states() == ["settled", "settled", "partial"]

        statement = json.loads(earned.stdout)
        rows = {row["job_id"]: row["amount_micro_usd"] for row in statement["payouts"]}
        assert rows == costs
        assert [row.job_id for row in journal_rows(home)] == [
            job["job_id"] for job in reversed(complete)
        ]
        assert all(row.estimate_micro_usd == costs[row.job_id] for row in journal_rows(home))

        newest_first = [costs[row["job_id"]] for row in statement["payouts"]]
        assert printed.stdout.splitlines()[:13] == [
            "Darkbloom Earnings",
            "",
            "Coordinator: online (1 providers connected)",
            "",
            "Earnings:",
            f"  Balance:       {money.format_usd(total)}",
            f"  Total earned:  {money.format_usd(total)}",
            "  Jobs served:   3",
            "",
            "Recent payouts:",
            *(f"  {money.format_usd(amount)}  {MODEL}" for amount in newest_first),
        ]


async def test_an_unlinked_machine_is_paid_under_its_wallet_and_told_to_log_in(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with network(tmp_path / "coordinator", timing=PATIENT) as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        with running("provider", "serve", home=home.root) as provider:
            await until_served(net, provider)
            reply = await net.http.post(CHAT, json=body("hello", max_tokens=4000))
            assert reply.status_code == 200
            printed = await asyncio.to_thread(darkbloom, "earnings", home=home.root)
        counts = reply.json()["usage"]
        cost = money.cost(counts["prompt_tokens"], counts["completion_tokens"], DEFAULT_PRICE)
        assert await net.spent() == cost
        (job,) = journal_rows(home)
        assert (job.linked, job.estimate_micro_usd) == (False, cost)
        assert f"  Balance:       {money.format_usd(cost)}\n" in printed.stdout
        assert f"  Total earned:  {money.format_usd(cost)}\n" in printed.stdout
        assert "darkbloom login" in printed.stdout
        assert printed.returncode == 0


async def test_wallet_money_moves_to_the_account_once_the_machine_is_linked(
    tmp_path: Path, home_root: Path, tiny_model: Path
) -> None:
    async with network(tmp_path / "coordinator", timing=PATIENT) as net:
        home = provider_home(home_root, net.ws_url, tiny_model)
        with running("unlinked", "serve", home=home.root) as provider:
            await until_served(net, provider)
            await net.http.post(CHAT, json=body("hello", max_tokens=4000))
        earned = await net.spent()
        assert earned > 0
        token, owner = await net.link()
        link(home, net.ws_url, token, owner)
        for name in ("linked", "again"):
            await until(lambda: not net.verified(), "the old session to end")
            with running(name, "serve", home=home.root) as provider:
                await until_served(net, provider)
            assert await net.balance(owner) == earned
