"""The console's pages when something is missing, refused, or only half done."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Route, expect

from darkbloom_provider.coordinator.console.gate import SESSION_COOKIE
from darkbloom_provider.coordinator.payouts.rail import Onboarding
from darkbloom_provider.coordinator.settings import Payouts, Policy, Rate, Rates
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.coordinator.store.storage import unavailable
from support.books import Clock
from support.browsing import every_page_is_sound, is_sound
from support.chromium import DESKTOP, chromium
from support.network import Network, network

PATIENT = pytest.mark.timeout(300)
ARRIVES_AFTER = timedelta(hours=1)
GENEROUS = Rate(1_000, 1_000)
STRICT = Rates(GENEROUS, Rate(0.001, 1), GENEROUS, Rate(0.001, 2), GENEROUS, GENEROUS)
MISSING = ("individual.verification.document", "external_account")

STRANGER = ("/", "/sign-in", "/sign-up", "/sign-in?done=signed_out", "/nothing-here")
SIGNED_IN = (
    "/nothing-there",
    "/keys",
    "/billing?done=bought",
    "/earn?page=99",
    "/earn?model=gone&from=2026-01-01",
    "/earn/withdrawals",
    "/link?code=AAAA-AAAA",
    "/machines?done=linked",
    "/earn/calculator?hours=99&error",
    "/earn/calculator?mac=mac-mini-m4&memory=16&hours=18&use=50&kwh=0.15",
)


async def seen(page: Page, visitor: str, path: str) -> None:
    await is_sound(page, visitor, path, examined=["phone"])


async def sent(page: Page, button: str) -> None:
    """Send a form, and wait for the page that answers it: it may look like the one before."""
    async with page.expect_event("load"):
        await page.get_by_role("button", name=button).click()


async def signed_in(browser: Browser, net: Network) -> Page:
    context = await browser.new_context(viewport=DESKTOP)
    session, base = net.session().reveal(), net.coordinator.base_url
    await context.add_cookies([{"name": SESSION_COOKIE, "value": session, "url": base}])
    return await context.new_page()


@PATIENT
async def test_pages_that_can_do_little_are_sound(tmp_path: Path) -> None:
    """A network that pays nobody out, sells nothing, and takes nobody in."""
    async with (
        chromium() as browser,
        network(tmp_path, policy=Policy(sign_up="closed"), payouts=Payouts(rail="off")) as net,
    ):
        base, session = net.coordinator.base_url, net.session().reveal()
        await every_page_is_sound(
            browser, base, None, STRANGER, "closed", examined=(), refused=True
        )
        await every_page_is_sound(
            browser, base, session, SIGNED_IN, "little", examined=(), refused=True
        )


@PATIENT
async def test_every_refusal_is_a_page_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chromium() as browser, network(tmp_path, rates=STRICT) as net:
        base = net.coordinator.base_url
        page = await signed_in(browser, net)

        await page.goto(f"{base}/keys")
        await sent(page, "Make a key")
        await sent(page, "Make a key")
        await expect(page.get_by_role("alert")).to_contain_text("Too many requests")
        await seen(page, "refused", "/too-many")

        forged = "document.querySelector('form[action=\"/keys\"] input[type=hidden]').value = 'x'"
        await page.evaluate(forged)
        await sent(page, "Make a key")
        await expect(page.get_by_role("alert")).to_contain_text("was not sent from a page")
        await seen(page, "refused", "/foreign-form")

        await page.goto(f"{base}/account")
        await page.get_by_label("Present password").fill("not my password")
        await page.get_by_label("New password").fill("a new and better password")
        await page.get_by_role("button", name="Change the password").click()
        await expect(page.get_by_role("alert")).to_be_visible()
        await seen(page, "refused", "/password")

        stranger = await browser.new_page(viewport=DESKTOP)
        await stranger.goto(f"{base}/sign-in")
        for number in range(4):
            await stranger.get_by_label("E-mail address").fill("nobody@example.org")
            await stranger.get_by_label("Password").fill("not my password")
            await sent(stranger, "Sign in")
            await expect(stranger.get_by_role("alert")).to_be_visible()
            if number == 0:
                await seen(stranger, "refused", "/wrong-password")
        await expect(stranger.get_by_role("alert")).to_contain_text("Too many")
        await seen(stranger, "refused", "/too-many-sign-ins")

        async def gone(*_: object) -> None:
            raise unavailable("the disk is full")

        async def crash(*_: object) -> None:
            raise RuntimeError("a defect")

        for name, failing in (("unavailable", gone), ("defect", crash)):
            with monkeypatch.context() as patch:
                patch.setattr(type(net.coordinator.services.db), "read", failing)
                await page.goto(f"{base}/leaderboard")
            await seen(page, "refused", f"/{name}")


@PATIENT
async def test_payouts_are_sound_however_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with (
        chromium() as browser,
        network(
            tmp_path, payouts=Payouts(sandbox_delay=ARRIVES_AFTER), sources=Sources(now=clock)
        ) as net,
    ):
        base, page = net.coordinator.base_url, await signed_in(browser, net)
        desk = net.coordinator.services.payouts
        assert desk is not None
        await net.coordinator.operator.credit_once(
            net.account, 12_345_678, reference="reward", withdrawable=True
        )
        bearer = {"Authorization": f"Bearer {net.session().reveal()}"}
        form = await net.http.post(
            "/v1/billing/stripe/onboard",
            json={"return_url": f"{base}/earn", "country": "US"},
            headers=bearer,
        )
        await page.goto(f"{base}/earn")
        await expect(page.get_by_role("heading", name="Payouts Pending")).to_be_visible()
        await seen(page, "payouts", "/pending")

        states: list[Onboarding] = []

        async def told(_external_id: str) -> Onboarding:
            return states[-1]

        with monkeypatch.context() as patch:
            patch.setattr(desk.rail, "onboarding", told)
            for state, words in (
                (Onboarding("restricted", currently_due=MISSING), "verification document"),
                (Onboarding("rejected"), "was rejected"),
            ):
                states.append(state)
                await page.goto(f"{base}/earn?stripe_return=1&done=payouts")
                await expect(page.get_by_text(words)).to_be_visible()
                await seen(page, "payouts", f"/{state.status}")

        await net.http.post(form.json()["url"], data={"destination": "no_account"})
        await on_the_way_back(page, base)
        await page.goto(f"{base}/earn/withdraw?amount=0.5")
        await expect(page.get_by_role("alert")).to_contain_text("The least")
        await seen(page, "payouts", "/too-little")
        await page.get_by_label("Amount in US dollars").fill("12.34")
        await page.get_by_role("button", name="Show what I get").click()
        await page.get_by_role("button", name="Withdraw now").click()
        await expect(page.get_by_role("status")).to_contain_text("is noted")
        await seen(page, "payouts", "/on-its-way")
        clock.forward(ARRIVES_AFTER)
        await desk.take_due_steps()
        await page.reload()
        await expect(page.get_by_text("(credited back)")).to_be_visible()
        await seen(page, "payouts", "/failed")


async def on_the_way_back(page: Page, base: str) -> None:
    """The page between the payment service and the Earn page, if it is slow to be left."""

    async def stay(route: Route) -> None:
        await route.fulfill(status=204)

    await page.route("**/earn?stripe_return=1*", stay)
    await page.goto(f"{base}/earn/payouts/return")
    await expect(page.get_by_role("link", name="continue here")).to_be_visible()
    await seen(page, "payouts", "/leave")
    await page.unroute("**/earn?stripe_return=1*")
