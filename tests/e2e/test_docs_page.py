"""Swagger UI in a headless browser: it lists and executes operations within its content security policy."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Page

from mlapi.entrypoints.wire.operations import OPERATIONS
from tests.e2e.browser import MISSING, BrowserMonitor, find_chromium
from tests.e2e.server import MlapiServer, Server
from tests.wsgi_server import empty_page, serving

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

ADMIN_TOKEN = "an-admin-token-for-tests-0123456789"
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
KEY = "6aP3mIoYkLCkxdVfCgDPTMCAs4YvXF-Y1nP5hGZJb0s="
PRODUCTION = {
    "MLAPI_PROFILE": "production",
    "MLAPI_DATABASE__URL": "sqlite:///mlapi.db",
    "MLAPI_SECRETS__KEY": KEY,
    "MLAPI_SECRETS__SALT": "a salt of more than 16 characters",
    "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
}
ATTACK = """
async ([target, token]) => {
  const attempts = [
    fetch(`${target}/console/page-token`, { credentials: "include" }).then(response => response.text()),
    fetch(`${target}/toggle-user-permission/1/0`, { method: "PUT", credentials: "include" }),
    fetch(`${target}/toggle-user-permission/1/0`, { method: "PUT", headers: { "X-Page-Token": token } }),
    fetch(`${target}/toggle-user-permission/1/0`, { method: "POST", mode: "no-cors", credentials: "include" }),
  ];
  return (await Promise.allSettled(attempts)).map(attempt => attempt.status);
}
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("local")) as server:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=15)
        yield server


def execute(page: Page, operation_id: str) -> tuple[str, str]:
    """Execute an operation with its sample values. Return the status and the whole response as text."""
    block = page.locator(f"[id$='-{operation_id}']")
    block.locator(".opblock-summary-control").click()
    for field in block.locator("tr[data-param-name=user_id] input").all():
        field.fill("1")
    block.locator("button.execute").click()
    response = block.locator(".live-responses-table .response")
    response.wait_for()
    return response.locator(".response-col_status").inner_text()[:3], block.inner_text()


def test_docs_page_lists_all_operations_and_manages_users(local: Server, browser: Browser) -> None:
    with browser.new_context() as context:
        monitor = BrowserMonitor(context)
        page = context.new_page()
        page.goto(f"{local.base}/docs")
        page.locator(".opblock").first.wait_for()
        toggled = execute(page, "setPermission")
        listed = execute(page, "listUsers")

        assert page.locator(".opblock").count() == len(OPERATIONS)
        assert (toggled[0], listed[0]) == ("200", "200")
        assert "User permission updated successfully" in toggled[1]
        assert "token" not in toggled[1].lower().partition("curl")[2].partition("request url")[0]
        assert monitor.hosts == {urlsplit(local.base).netloc}
        assert monitor.errors == []


def test_authorize_button_logs_a_user_in(local: Server, browser: Browser) -> None:
    requests.put(f"{local.base}/toggle-user-permission/1/1", timeout=15)
    with browser.new_context() as context:
        monitor = BrowserMonitor(context)
        page = context.new_page()
        page.goto(f"{local.base}/docs")
        page.locator(".opblock").first.wait_for()
        page.locator("button.authorize").first.click()
        form = page.locator(".auth-container", has_text="userLogin")
        form.locator("#oauth_username").fill(ADA["username"])
        form.locator("#oauth_password").fill(ADA["password"])
        form.locator("button.authorize").click()
        form.locator("button", has_text="Logout").wait_for()
        page.locator(".btn-done").first.click()
        status, text = execute(page, "showOwnUser")

        assert (status, '"username": "ada"' in text) == ("200", True)
        assert monitor.errors == []


def test_page_of_another_port_manages_nothing(local: Server, browser: Browser) -> None:
    enable = f"{local.base}/toggle-user-permission/1/1"
    requests.put(enable, timeout=15)
    with serving(empty_page) as foreign_origin, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{local.base}/docs")
        token = page.evaluate("fetch('console/page-token').then(response => response.json())")["token"]
        page.goto(foreign_origin)
        attempts = page.evaluate(ATTACK, [local.base, token])

    assert token
    assert attempts == ["rejected", "rejected", "rejected", "rejected"]
    assert requests.get(f"{local.base}/users/1", timeout=15).json()["enabled"] is True


def test_docs_page_of_production_works_after_login(browser: Browser, tmp_path: Path) -> None:
    with MlapiServer(tmp_path, PRODUCTION, "--root-path", "/um") as server, browser.new_context() as context:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=15)
        monitor = BrowserMonitor(context)
        page = context.new_page()
        page.goto(f"{server.base}/um/")  # the start page leads to the login
        page.get_by_label("Token").fill(ADMIN_TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="API", exact=True).click()
        page.locator(".opblock").first.wait_for()
        toggled = execute(page, "setPermission")

        assert page.url.partition("#")[0] == f"{server.base}/um/docs"
        assert toggled[0] == "200"
        assert ADMIN_TOKEN not in page.content()
        assert monitor.errors == []

        page.goto(f"{server.base}/um/console")
        page.get_by_role("button", name="Sign out").click()
        status = page.goto(f"{server.base}/um/docs")
        assert status is not None
        assert status.status == 401
