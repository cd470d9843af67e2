"""Debian's Chromium, driven by Playwright, on a page of ``ldm serve``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing of its own over the network, and no sandbox, which containers do not have.
ARGUMENTS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@contextmanager
def open_page(url: str, **options: Any) -> Iterator[Any]:
    """Provide a page of Playwright that has loaded an address. options: of ``new_page``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            ignore_default_args=["--headless"],
        )
        page = browser.new_page(**options)
        page.goto(url)
        yield page
        browser.close()
