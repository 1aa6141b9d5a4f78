"""What must be true of every page of the console in a real browser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from playwright.async_api import Browser, Page, ViewportSize

from darkbloom_provider.coordinator.console.gate import SESSION_COOKIE
from support.chromium import DESKTOP, PHONE, Complaints, barriers

SCREENSHOTS = os.environ.get("DARKBLOOM_SCREENSHOTS")
"""A directory to put a picture of each page into."""

LOOKS: tuple[tuple[str, ViewportSize, Literal["dark", "light"]], ...] = (
    ("phone", PHONE, "dark"),
    ("desktop", DESKTOP, "light"),
)
REFUSED = "Failed to load resource: the server responded with a status of 4"
SCHEMES: tuple[Literal["dark", "light"], ...] = ("dark", "light")
TOO_WIDE = """[...document.querySelectorAll("body *")]
    .filter(element => element.getBoundingClientRect().right > window.innerWidth)
    .map(element => element.outerHTML.slice(0, 120))"""
SPILLS = """[...document.querySelectorAll("body *")]
    .filter(element => getComputedStyle(element).overflowX === "visible")
    .filter(element => !element.closest("thead, .unseen"))
    .filter(element => element.clientWidth && element.scrollWidth > element.clientWidth + 1)
    .map(element => element.outerHTML.slice(0, 120))"""
"""What is wider than its place, and so lies over what is beside it."""


async def every_page_is_sound(
    browser: Browser,
    base: str,
    session: str | None,
    paths: Iterable[str],
    visitor: str,
    *,
    examined: Sequence[str] = ("phone", "desktop"),
    refused: bool = False,
) -> None:
    """Nothing is cut off, nobody is kept out, and the browser complains of nothing.

    Args:
        browser: Any.
        base: Where the console is.
        session: Of who looks; None for a stranger.
        paths: The pages.
        visitor: What to call who looks, in the names of pictures.
        examined: The widths at which axe-core looks, too; it takes its time.
        refused: Whether some of the pages are errors, which a browser always mentions.
    """
    context = await browser.new_context()
    if session is not None:
        await context.add_cookies([{"name": SESSION_COOKIE, "value": session, "url": base}])
    page = await context.new_page()
    complaints = Complaints(page)
    for path in paths:
        await page.goto(base + path)
        await is_sound(page, visitor, path, examined=examined)
    heard = complaints.heard
    assert [text for text in heard if not (refused and REFUSED in text)] == []
    await context.close()


async def is_sound(
    page: Page, visitor: str, path: str, *, examined: Sequence[str] = ("phone", "desktop")
) -> None:
    """Nothing is cut off at either width, and nobody is kept out. Takes the page's pictures."""
    assert await page.locator("h1").count() == 1, path
    assert await page.locator("main").count() == 1, path
    for name, viewport, looked_at in LOOKS:
        await page.set_viewport_size(viewport)
        await page.emulate_media(color_scheme=looked_at)
        found = await barriers(page) if name in examined else []
        assert not found, (path, found)
        width = await page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, (f"{path} is {width} pixels too wide", await page.evaluate(TOO_WIDE))
        spills = await page.evaluate(SPILLS)
        assert not spills, (path, name, spills)
        for scheme in SCHEMES if SCREENSHOTS else ():
            await page.emulate_media(color_scheme=scheme)
            place = f"{SCREENSHOTS}/{visitor}{re.sub('[^a-z]+', '-', path)}-{name}-{scheme}.png"
            await page.screenshot(path=place, full_page=True)
    await page.emulate_media(color_scheme=None)
