"""A real browser without a window: the machine's own Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Request, ViewportSize, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MAC_APPS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)

DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 375, "height": 760}


def executable() -> str | None:
    """Where the machine's Chromium is; `CHROMIUM` names another one."""
    found = (shutil.which(name) for name in NAMES)
    apps = (path for path in MAC_APPS if Path(path).exists())
    return os.environ.get("CHROMIUM") or next(filter(None, (*found, *apps)), None)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser; skips the test where there is none."""
    path = executable()
    if path is None:
        pytest.skip("needs Chromium; Debian's package is called chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            # Chromium's own sandbox does not run as root, as in a container.
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        try:
            yield browser
        finally:
            await browser.close()


_AXE = Axe()
_RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


async def barriers(page: Page) -> list[str]:
    """What keeps people with a disability from using this page, as far as axe-core can tell."""
    found = await _AXE.run(page, options=_RULES)
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node['failureSummary']}"
        for violation in found.response["violations"]
        for node in violation["nodes"]
    ]


class Complaints:
    """Whatever a browser finds wrong with pages: policy violations, errors, missing files."""

    def __init__(self, page: Page) -> None:
        self.heard: list[str] = []
        page.on("console", lambda message: self.heard.append(message.text))
        page.on("pageerror", lambda error: self.heard.append(str(error)))
        page.on("requestfailed", self._failed)

    def _failed(self, request: Request) -> None:
        # A page that is left before it is whole is nobody's fault.
        if request.failure != "net::ERR_ABORTED":
            self.heard.append(f"failed: {request.url}: {request.failure}")
