"""Find and start a headless Chromium, and record the hosts it contacts and the errors it reports."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "Chromium is not installed, so the browser tests were skipped: apt-get install chromium"
_FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """Return the path of the installed Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path is not None), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    path = find_chromium()
    assert path is not None, MISSING
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox does not work as root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_FLAGS, *sandbox])
        try:
            yield browser
        finally:
            browser.close()


class BrowserMonitor:
    """Records the hosts that a browser context contacts, and the errors and warnings in its console."""

    def __init__(self, context: BrowserContext) -> None:
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        context.on("request", self._record_host)
        context.on("console", self._record_error)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))

    def _record_host(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).netloc)

    def _record_error(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(message.text)
