"""The web console in a real browser, over a running coordinator and a provider that works."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from darkbloom_provider.coordinator.console.gate import SESSION_COOKIE
from darkbloom_provider.coordinator.settings import Payouts, Policy
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.protocol.boxes import KeyPair
from darkbloom_provider.protocol.messages import ModelInfo
from support.books import Clock
from support.browsing import every_page_is_sound, is_sound
from support.chromium import DESKTOP, Complaints, chromium
from support.console import PASSWORD
from support.network import Network, network
from support.scripted_provider import Job, registration, scripted_provider

OWNER = "owner@example.org"
ARRIVES_AFTER = timedelta(hours=1)
DEAR = "mlx-community/Qwen3.5-122B-A10B-8bit"
WRITTEN = 1_350_000
"""Tokens of one answer, so that a single job earns what can be withdrawn: 130 + 1 404 000."""
LARGE = registration(KeyPair.generate()).hardware.model_copy(update={"memory_gb": 1_000})

OFFERED = (ModelInfo(id=DEAR),)

PATIENT = pytest.mark.timeout(400)
"""Many pages, looked at one after another on a machine that may have much else to do."""

PATHS = {
    "stranger": (
        "/",
        "/setup",
        "/sign-in",
        "/sign-up",
        "/earn/calculator",
        "/leaderboard",
        "/models",
        "/stats",
    ),
    "owner": (
        "/earn",
        "/earn?span=hour",
        "/earn?to=2026-04-30",
        "/earn/withdraw",
        "/earn/withdrawals",
        "/machines",
        "/link",
        "/billing",
        "/keys",
        "/account",
        "/leaderboard",
    ),
    "consumer": ("/earn", "/machines", "/billing"),
}


FOCUS = """() => {
    const all = [...document.querySelectorAll("body *")];
    const style = getComputedStyle(document.activeElement);
    return [all.indexOf(document.activeElement), style.outlineStyle, parseInt(style.outlineWidth)];
}"""


async def generous(job: Job) -> None:
    """Answers in a few words and says it was many."""
    await job.accept()
    await job.answer("hello", usage=(1_000, WRITTEN))
    await job.complete(1_000, WRITTEN)


async def sign_up(page: Page, base: str) -> None:
    await page.goto(f"{base}/")
    await page.get_by_role("link", name="Create an account").click()
    await page.get_by_label("E-mail address").fill(OWNER)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Create the account").click()
    await expect(page.get_by_role("heading", name="Link your first machine")).to_be_visible()


async def no_script_can_read_the_session(page: Page) -> None:
    cookies = {cookie["name"]: cookie for cookie in await page.context.cookies()}
    assert cookies[SESSION_COOKIE]["httpOnly"]
    assert cookies[SESSION_COOKIE]["sameSite"] == "Strict"
    assert SESSION_COOKIE not in await page.evaluate("document.cookie")


async def link(page: Page, net: Network) -> str:
    """Approve a machine's code in the browser; the machine's token."""
    code = (await net.http.post("/v1/device/code")).json()
    await page.goto(f"{net.coordinator.base_url}/link?code={code['user_code']}")
    await expect(page.get_by_text(code["user_code"])).to_be_visible()
    await is_sound(page, "owner", "/link-confirm")
    await page.get_by_role("button", name="Link this machine").click()
    await expect(page.get_by_role("status")).to_contain_text("The machine is linked")
    answer = await net.http.post("/v1/device/token", json={"device_code": code["device_code"]})
    token = answer.json()["token"]
    assert isinstance(token, str)
    return token


async def set_up_payouts(page: Page, base: str) -> None:
    await page.goto(f"{base}/earn")
    await is_sound(page, "owner", "/earn-before-payouts")
    await page.get_by_label("Country").select_option("US")
    await page.get_by_role("button", name="Set up payouts").click()
    await is_sound(page, "owner", "/sandbox")
    await page.get_by_role("button", name=re.compile("Debit card")).click()
    await page.get_by_role("link", name="Continue").click()
    await expect(page.get_by_role("heading", name="Payouts Ready")).to_be_visible()


@PATIENT
async def test_an_owner_signs_up_links_earns_filters_and_is_paid(tmp_path: Path) -> None:
    clock = Clock()
    async with (
        chromium() as browser,
        network(
            tmp_path,
            policy=Policy(sign_up="open"),
            payouts=Payouts(sandbox_delay=ARRIVES_AFTER),
            sources=Sources(now=clock),
        ) as net,
    ):
        base = net.coordinator.base_url
        page = await browser.new_page(viewport=DESKTOP)
        complaints = Complaints(page)
        await sign_up(page, base)
        await no_script_can_read_the_session(page)
        token = await link(page, net)
        await page.get_by_role("link", name="Look again").click()
        await expect(page.get_by_text("This machine is not connected")).to_be_visible()
        await is_sound(page, "owner", "/machine-offline")
        async with scripted_provider(
            net.ws_url, generous, auth_token=token, hardware=LARGE, models=OFFERED
        ):
            await net.until(lambda: net.verified() == 1)
            await page.goto(f"{base}/machines")
            await expect(page.get_by_role("heading", name="Apple M4 Max Online")).to_be_visible()
            reply = await net.ask(model=DEAR, max_tokens=1_400_000)
            assert reply.status_code == 200
            await net.idle()
            await earned_is_shown(page, base)
            await the_machine_has_its_own_page(page, base)
            await filters_narrow_the_history(page, base)
            await set_up_payouts(page, base)
            await withdraw(page)
            clock.forward(ARRIVES_AFTER)
            desk = net.coordinator.services.payouts
            assert desk is not None
            await desk.take_due_steps()
            await page.reload()
            await expect(page.get_by_role("cell", name=re.compile("paid"))).to_be_visible()
            await keys_are_shown_once(page, base)
            await credit_is_bought(page, base)
            await every_page_is_sound(
                browser, base, await session_of(page), PATHS["owner"], "owner"
            )
        assert complaints.heard == []


def figure(where: Page | Locator, name: str) -> Locator:
    """The number with this name."""
    return where.locator(f'dl > div:has(> dt:text-is("{name}")) > dd')


async def earned_is_shown(page: Page, base: str) -> None:
    await page.goto(f"{base}/earn")
    await expect(figure(page, "Balance")).to_have_text("$1.404130")
    await expect(figure(page, "Jobs served")).to_have_text("1")
    title = page.locator("svg[aria-label^=Earnings] title", has_text="$1.404130, 1 job,")
    await expect(title).to_have_count(1)
    bars = await page.locator("svg[aria-label^=Earnings] .bar").all()
    drawn = [float(await bar.get_attribute("height") or 0) for bar in bars]
    assert len(drawn) == 30
    assert [height > 0 for height in drawn] == [False] * 29 + [True]
    await page.get_by_text("Show the graph as a table").click()
    row = page.get_by_role("row").filter(has_text="1 May 2026").first
    await expect(row).to_contain_text("1,350,000")
    await is_sound(page, "owner", "/graph-as-table", examined=["phone"])


async def the_machine_has_its_own_page(page: Page, base: str) -> None:
    await page.goto(f"{base}/machines")
    await expect(figure(page, "Online")).to_have_text("1 of 1")
    await page.get_by_role("link", name="Apple M4 Max").click()
    await expect(figure(page, "Earned by this machine")).to_have_text("$1.404130")
    await expect(figure(page, "Last passed check")).to_have_text(re.compile("ago"))
    await expect(page.get_by_role("region", name="Jobs")).to_contain_text("+$1.404130")
    await expect(page.get_by_role("region", name="Models")).to_contain_text("yes")
    await is_sound(page, "owner", "/machine")
    await page.get_by_role("link", name="Earn", exact=True).click()
    await page.get_by_role("link", name="Calculator", exact=True).click()
    await page.get_by_role("combobox", name="Mac").select_option("Mac Studio, M2 Ultra")
    await page.get_by_role("combobox", name="Memory").select_option("192 GB")
    await page.get_by_label("Share of that time with work").fill("50")
    await page.get_by_role("button", name="Calculate").click()
    await expect(page.get_by_role("rowheader", name="Qwen3.5 122B")).to_be_visible()
    await is_sound(page, "owner", "/calculator")
    await page.goto(f"{base}/earn")


async def filters_narrow_the_history(page: Page, base: str) -> None:
    history = page.get_by_role("region", name="Payout history")
    await page.get_by_label("From").fill("2026-04-01")
    await page.get_by_label("To", exact=True).fill("2026-04-30")
    await page.get_by_role("button", name="Filter").click()
    await expect(page.get_by_text("No job matches this filter.")).to_be_visible()
    await page.get_by_label("To", exact=True).fill("2026-05-01")
    await page.get_by_role("combobox", name="Model").select_option(DEAR)
    await page.get_by_role("button", name="Filter").click()
    await expect(history.first).to_contain_text("+$1.404130")
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download as CSV").click()
    saved = await (await download.value).path()
    lines = saved.read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"2026-05-01T12:00:00Z,{DEAR},")
    assert lines[1].endswith(f",1000,{WRITTEN},1.404130,1404130")


async def withdraw(page: Page) -> None:
    await page.get_by_role("link", name="Withdraw", exact=True).click()
    amount = page.get_by_label("Amount in US dollars")
    await expect(amount).to_have_value("1.40")
    await page.get_by_label("Instant:").check()
    await page.get_by_role("button", name="Show what I get").click()
    await is_sound(page, "owner", "/withdraw-preview")
    preview = page.get_by_role("region", name="This is what happens")
    await expect(figure(preview, "Fee")).to_have_text("$0.500000")
    await expect(figure(preview, "You get")).to_have_text("$0.900000")
    await page.get_by_role("button", name="Withdraw now").click()
    await expect(page.get_by_role("status")).to_contain_text("is noted")
    await expect(page.get_by_role("cell", name=re.compile("in progress"))).to_be_visible()


async def keys_are_shown_once(page: Page, base: str) -> None:
    await page.goto(f"{base}/keys")
    await page.get_by_label("Name").fill("laptop")
    await page.get_by_role("button", name="Make a key").click()
    key = await page.locator(".key code").inner_text()
    assert key.startswith("eigeninference-")
    await is_sound(page, "owner", "/new-key")
    await page.goto(f"{base}/keys")
    assert key not in await page.content()
    await expect(page.get_by_role("cell", name="laptop", exact=True)).to_be_visible()


async def credit_is_bought(page: Page, base: str) -> None:
    await page.goto(f"{base}/billing")
    await expect(figure(page, "Credit")).to_have_text("$0.000000")
    await page.get_by_role("combobox", name="Amount").select_option("$10")
    await page.get_by_role("button", name="Buy credit").click()
    await is_sound(page, "owner", "/checkout")
    await page.get_by_role("button", name="Pretend to pay").click()
    await page.get_by_role("link", name="Continue").click()
    await expect(page.get_by_role("heading", name="Billing and usage")).to_be_visible()
    await expect(figure(page, "Credit")).to_have_text("$10.000000")


async def session_of(page: Page) -> str:
    cookies = await page.context.cookies()
    return next(cookie["value"] for cookie in cookies if cookie["name"] == SESSION_COOKIE)


@PATIENT
async def test_pages_with_nothing_to_show_are_sound(tmp_path: Path) -> None:
    async with chromium() as browser, network(tmp_path, policy=Policy(sign_up="open")) as net:
        base = net.coordinator.base_url
        await every_page_is_sound(browser, base, None, PATHS["stranger"], "stranger")
        session = net.session().reveal()
        await every_page_is_sound(browser, base, session, PATHS["consumer"], "consumer")


async def test_every_step_can_be_taken_with_the_keyboard_alone(tmp_path: Path) -> None:
    async with chromium() as browser, network(tmp_path, policy=Policy(sign_up="open")) as net:
        page = await browser.new_page(viewport=DESKTOP)
        await page.goto(f"{net.coordinator.base_url}/sign-up")
        await page.keyboard.type(OWNER)
        await page.keyboard.press("Tab")
        await page.keyboard.type(PASSWORD)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Earn", exact=True)).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        for name in ("Earnings", "Withdrawals", "Calculator", "Set up a Mac"):
            await page.keyboard.press("Tab")
            await expect(page.get_by_role("link", name=name, exact=True).first).to_be_focused()


async def test_whatever_has_the_focus_can_be_seen_to_have_it(tmp_path: Path) -> None:
    async with chromium() as browser, network(tmp_path, policy=Policy(sign_up="open")) as net:
        page = await browser.new_page(viewport=DESKTOP)
        await sign_up(page, net.coordinator.base_url)
        await page.goto(f"{net.coordinator.base_url}/earn")
        reached: list[int] = []
        while True:
            await page.keyboard.press("Tab")
            place, style, width = await page.evaluate(FOCUS)
            if reached and place == reached[-1]:
                continue  # a date has a place for each of its parts
            if place < 0 or place in reached:
                break
            assert style == "solid", place
            assert width >= 2, place
            reached.append(place)
        assert len(reached) > 20
        assert reached == sorted(reached), "Tab leaves the order of the page"
