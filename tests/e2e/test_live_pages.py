"""Pages with live figures keep themselves up to date, and never get in the visitor's way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from darkbloom_provider.coordinator.console.gate import SESSION_COOKIE
from darkbloom_provider.coordinator.providers.registry import Session
from darkbloom_provider.coordinator.settings import Policy
from darkbloom_provider.coordinator.sources import Sources
from darkbloom_provider.protocol.messages import Hardware
from support.books import Clock
from support.chromium import PHONE, Complaints, chromium
from support.network import Network, network
from support.sessions import connected

A_MINUTE = 61_000
"""In milliseconds: longer than any page waits."""
SLOWEST = 301_000
OBSERVED = """
    Object.defineProperty(document, "hidden", { get: () => window.away ?? false });
    window.asked = [];
    window.replies = [];
    const really = window.fetch;
    window.fetch = (address, options) => {
        window.asked.push(String(address));
        const reply = really(address, options);
        window.replies.push(reply.then((answer) => answer.clone().text()));
        return reply;
    };
"""


@dataclass
class Watched:
    """A page whose clock stands still, and what it asks the coordinator for."""

    page: Page
    net: Network

    async def after(self, milliseconds: int) -> list[str]:
        """Let time pass in the browser; what it asked for meanwhile, and was answered."""
        await self.page.clock.fast_forward(milliseconds)
        await self.page.evaluate("Promise.allSettled(window.replies)")
        asked: list[str] = await self.page.evaluate("window.asked.splice(0)")
        return asked

    async def see(self, path: str) -> None:
        await self.page.goto(self.net.coordinator.base_url + path)
        await self.page.evaluate("document.querySelector('h1').marked = true")

    def machine(self, chip: str) -> Session:
        """One more machine of the visitor is connected."""
        hub = self.net.coordinator.hub
        session = connected(
            self.net.account,
            now=hub.sources.now(),
            monotonic=hub.sources.monotonic(),
            hardware=Hardware(chip_name=chip, machine_model="Mac16,5", memory_gb=64),
            machine_id=chip.encode().hex().zfill(32),
        )
        hub.registry.add(session)
        return session


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with (
        chromium() as browser,
        network(tmp_path, policy=Policy(sign_up="open"), sources=Sources(now=Clock())) as net,
    ):
        page = await signed_in(browser, net)
        complaints = Complaints(page)
        yield Watched(page, net)
        assert complaints.heard == []


async def signed_in(browser: Browser, net: Network, *, scripts: bool = True) -> Page:
    context = await browser.new_context(viewport=PHONE, java_script_enabled=scripts)
    session, base = net.session().reveal(), net.coordinator.base_url
    await context.add_cookies([{"name": SESSION_COOKIE, "value": session, "url": base}])
    page = await context.new_page()
    if scripts:
        await page.add_init_script(OBSERVED)
        await page.clock.install()
    return page


async def test_a_machine_that_connects_appears_and_one_that_leaves_goes(watched: Watched) -> None:
    page = watched.page
    await watched.see("/machines")
    await expect(page.get_by_role("heading", name="No machine yet")).to_be_visible()
    first = watched.machine("Apple M4 Max")
    await watched.after(A_MINUTE)
    await expect(page.get_by_role("link", name="Apple M4 Max")).to_be_visible()
    watched.net.coordinator.hub.registry.remove(first)
    await watched.after(A_MINUTE)
    await expect(page.get_by_role("link", name="Apple M4 Max")).to_have_count(0)
    assert await page.evaluate("document.querySelector('h1').marked"), "the page was loaded anew"


async def test_every_page_with_live_figures_asks_again_and_no_other_does(watched: Watched) -> None:
    for path in ("/machines", "/earn", "/stats", "/leaderboard"):
        await watched.see(path)
        assert await watched.after(A_MINUTE) == [watched.net.coordinator.base_url + path]
    for path in ("/billing", "/keys", "/link", "/account", "/earn/calculator"):
        await watched.see(path)
        assert await watched.after(A_MINUTE) == []


async def test_focus_and_scroll_stay_with_what_they_were_on(watched: Watched) -> None:
    page = watched.page
    for number in range(3, 9):
        watched.machine(f"Apple M{number}")
    await watched.see("/machines")
    link = page.get_by_role("link", name="Apple M7")
    await link.focus()
    await page.evaluate("window.scrollTo(0, 700)")
    before = await page.evaluate("window.scrollY")
    watched.machine("Apple M2")
    await watched.after(A_MINUTE)
    await expect(page.get_by_role("link", name="Apple M2")).to_have_count(1)
    await expect(link).to_be_focused()
    assert await page.evaluate("window.scrollY") == before > 0


async def test_who_had_the_focus_on_what_is_gone_is_at_the_beginning(watched: Watched) -> None:
    page = watched.page
    gone = watched.machine("Apple M4 Max")
    await watched.see("/machines")
    await page.get_by_role("link", name="Apple M4 Max").focus()
    watched.net.coordinator.hub.registry.remove(gone)
    await watched.after(A_MINUTE)
    await expect(page.get_by_role("main")).to_be_focused()


async def test_what_stays_the_same_is_not_touched_and_so_not_read_out_again(
    watched: Watched,
) -> None:
    page = watched.page
    watched.machine("Apple M4 Max")
    await watched.see("/machines?done=linked")
    await page.evaluate(
        """() => {
            window.changes = [];
            const live = document.querySelector("[role=status]");
            const seen = (changes) => window.changes.push(...changes);
            new MutationObserver(seen).observe(live, {
                subtree: true, childList: true, characterData: true, attributes: true,
            });
        }"""
    )
    watched.machine("Apple M2")
    await watched.after(A_MINUTE)
    await expect(page.get_by_role("link", name="Apple M2")).to_be_visible()
    await expect(page.get_by_role("status")).to_contain_text("The machine is linked")
    assert await page.evaluate("window.changes.length") == 0
    assert await page.locator("[aria-live]").count() == 0


async def test_a_form_that_is_being_filled_in_is_left_alone(watched: Watched) -> None:
    page = watched.page
    await watched.see("/earn")
    await page.get_by_label("From").focus()
    assert await watched.after(A_MINUTE) == []
    await page.get_by_label("From").fill("2026-04-01")
    await page.get_by_role("heading", name="Payout history").click()
    assert await watched.after(A_MINUTE) == []
    await expect(page.get_by_label("From")).to_have_value("2026-04-01")
    await page.get_by_label("From").fill("")
    await page.get_by_role("heading", name="Payout history").click()
    assert len(await watched.after(A_MINUTE)) == 1


async def test_a_page_that_nobody_looks_at_asks_for_nothing_until_somebody_does(
    watched: Watched,
) -> None:
    page = watched.page
    await watched.see("/machines")
    await page.evaluate("window.away = true")
    assert await watched.after(A_MINUTE) == []
    watched.machine("Apple M4 Max")
    await page.evaluate(
        "window.away = false; document.dispatchEvent(new Event('visibilitychange'))"
    )
    await expect(page.get_by_role("link", name="Apple M4 Max")).to_be_visible()


async def test_when_the_session_has_ended_what_was_shown_stays(watched: Watched) -> None:
    page = watched.page
    watched.machine("Apple M4 Max")
    await watched.see("/machines")
    await page.context.clear_cookies()
    assert len(await watched.after(A_MINUTE)) == 1
    await expect(page.get_by_role("link", name="Apple M4 Max")).to_be_visible()
    assert await watched.after(SLOWEST) == []


async def test_without_a_script_every_page_is_the_same_page(tmp_path: Path) -> None:
    async with chromium() as browser, network(tmp_path) as net:
        page = await signed_in(browser, net, scripts=False)
        for path, heading in (("/machines", "No machine yet"), ("/earn", "Link your first")):
            await page.goto(net.coordinator.base_url + path)
            await expect(page.get_by_role("heading", name=heading)).to_be_visible()
