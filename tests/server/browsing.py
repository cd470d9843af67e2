"""A real browser at a real server, for tests of the page."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn

from ldm.server.app import create_app
from ldm.server.settings import Settings
from ldm.server.state import Server
from tools.browser import ARGUMENTS, CHROMIUM

PATIENCE = 120_000  # ms; the machine may be busy
WIDE, PHONE = {"width": 1360, "height": 900}, {"width": 360, "height": 740}


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[tuple[str, Server]]:
    """Serve on a free port of loopback; yield the address and the core."""
    app = create_app(settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app.state.server
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def browsing():
    """Start Chromium, or skip with the reason. The loop that Playwright runs ends with it."""
    api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, ignore_default_args=["--headless"]
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visits:
    """Opens the page, and keeps what must not happen: errors, and requests to other places."""

    browser: object
    url: str
    server: Server
    wrong: list[str] = field(default_factory=list)
    contexts: list = field(default_factory=list)

    def open(self, size=WIDE, scheme="light", live=True, choices=None, **options):
        """Open the page in a new profile, as soon as its form is ready.

        choices: what the server offers in place of its own, such as {"loras": [...]}.
        """
        context = self.browser.new_context(viewport=size, color_scheme=scheme, **options)
        context.set_default_timeout(PATIENCE)
        self.contexts.append(context)
        if not live:
            context.add_init_script("localStorage['ldm.live.built-in'] ??= 'off'")
        page = context.new_page()
        page.on("request", self._request)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda m: self._log(m.type, f"{m.text} {m.location.get('url')}"))
        if choices is not None:
            page.route(
                "**/choices.json",
                lambda route: route.fulfill(json=route.fetch().json() | choices),
            )
        page.goto(self.url)
        page.wait_for_function("() => document.querySelector('#model').options.length > 0")
        return page

    def _request(self, request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.wrong.append(f"request: {request.url}")

    def _log(self, kind: str, text: str) -> None:
        # A refused body is an answer that the page shows in words.
        if kind in ("error", "warning") and "the server responded with a status of 4" not in text:
            self.wrong.append(f"{kind}: {text}")

    def close(self) -> None:
        """Close all pages; fail for what went wrong."""
        for context in self.contexts:
            context.close()
        self.contexts.clear()
        wrong, self.wrong = self.wrong, []
        assert not wrong, wrong
