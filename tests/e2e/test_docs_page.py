"""Swagger UI in a headless browser: it lists every operation and executes one within its content security policy."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mlapi.entrypoints.wire.operations import OPERATIONS
from tests.e2e.browser import MISSING, BrowserMonitor, find_chromium, running_browser
from tests.e2e.server import Server


@pytest.mark.skipif(find_chromium() is None, reason=MISSING)
def test_docs_page_lists_all_operations_and_executes_one(tmp_path: Path) -> None:
    with Server(tmp_path) as server, running_browser() as browser, browser.new_context() as context:
        monitor = BrowserMonitor(context)
        page = context.new_page()
        page.goto(f"{server.base}/docs")
        page.locator(".opblock").first.wait_for()
        register = page.locator("[id$='-registerUser']")
        register.locator(".opblock-summary-control").click()
        register.locator("button.execute").click()
        response = register.locator(".live-responses-table .response")
        response.wait_for()

        assert page.locator(".opblock").count() == len(OPERATIONS)
        assert response.locator(".response-col_status").inner_text().startswith("201")
        assert "User created successfully" in response.inner_text()
        assert monitor.hosts == {urlsplit(server.base).netloc}
        assert monitor.errors == []
