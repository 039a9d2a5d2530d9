"""The console in a headless browser: with the mouse, with the keyboard, without JavaScript and on a phone.

After each test, a fixture checks that the browser contacted no other host and logged no error, such as a violation of
the content security policy.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import MISSING, BrowserMonitor, find_chromium
from tests.e2e.server import Server

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

ADMIN_TOKEN = "an-admin-token-for-tests"
SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img/src=x/onerror=alert(1)>"
EXPECTED_ERRORS = (
    "status of 401 (Unauthorized)",
    "status of 422 (Unprocessable Entity)",
    "status of 422 (Unprocessable Content)",
)
"""Chromium logs these when the server rejects a form. Python 3.13 renamed a status."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("local")
    (folder / "config.yml").write_text("plans: {pro: {}, enterprise: {}}\n")
    with Server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def token_mode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("token"), {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN}) as server:
        yield server


OpenConsole = Callable[..., Page]


@pytest.fixture
def open_console(browser: Browser) -> Iterator[OpenConsole]:
    """Return a function that opens a server's console in a new browser context."""
    opened: list[tuple[Server, BrowserMonitor]] = []
    contexts = []

    def open_page(server: Server, path: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        opened.append((server, BrowserMonitor(context)))
        page = context.new_page()
        page.goto(f"{server.base}/console{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    for server, monitor in opened:
        assert monitor.hosts == {urlsplit(server.base).netloc}
        assert [error for error in monitor.errors if not error.endswith(EXPECTED_ERRORS)] == []


def register(server: Server, username: str, email: str = "someone@example.com") -> int:
    body = {"username": username, "password": "difference engine", "email": email}
    response = requests.post(f"{server.base}/register-user", json=body, timeout=15)
    assert response.status_code == 201, response.text
    user_id: int = response.json()["user_id"]
    return user_id


def is_enabled(server: Server, user_id: int) -> bool:
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    enabled: bool = requests.get(f"{server.base}/users/{user_id}", headers=headers, timeout=15).json()["enabled"]
    return enabled


def log_in(page: Page, token: str = ADMIN_TOKEN) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this text has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim().replace(/\\s+/g, ' ')") == name:
            return
    raise AssertionError(f"{name} cannot be reached with the Tab key")


def test_admin_token_logs_in_and_logout_ends_the_session(token_mode: Server, open_console: OpenConsole) -> None:
    page = open_console(token_mode)
    log_in(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("Users")

    page.get_by_role("button", name="Sign out").click()

    expect(page.locator("#status .text")).to_have_text("You are signed out.")
    page.goto(f"{token_mode.base}/console")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_wrong_token_shows_an_error(token_mode: Server, open_console: OpenConsole) -> None:
    page = open_console(token_mode)

    log_in(page, "wrong")

    expect(page.get_by_role("alert")).to_have_text("This token is wrong or has expired.")
    expect(page.get_by_label("Token")).to_be_focused()
    expect(page.get_by_label("Token")).to_have_value("")


@pytest.mark.parametrize("mode", ["local", "token_mode"])
def test_user_can_be_disabled_with_the_keyboard_alone(
    request: pytest.FixtureRequest, open_console: OpenConsole, mode: str
) -> None:
    server: Server = request.getfixturevalue(mode)
    user_id = register(server, "keyboard")
    page = open_console(server)
    if mode == "token_mode":
        log_in(page)
        expect(page.get_by_role("heading", level=1)).to_have_text("Users")
        page.wait_for_load_state()

    tab_to(page, "Disable keyboard")
    page.keyboard.press("Enter")

    expect(page.locator("#status .text")).to_have_text("keyboard is disabled.")
    expect(page.get_by_role("button", name="Enable keyboard")).to_be_focused()
    if mode == "token_mode":
        assert not is_enabled(server, user_id)
    # Htmx takes over a new form a few milliseconds after inserting it. Before that, the browser would submit it.
    expect(page.locator(".htmx-added")).to_have_count(0)
    page.wait_for_timeout(1_100)  # the button ignores the second click of a double click
    page.keyboard.press("Space")
    expect(page.locator("#status .text")).to_have_text("keyboard is enabled.")
    expect(page.get_by_role("button", name="Disable keyboard")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_removing_a_user_requires_confirmation(local: Server, open_console: OpenConsole) -> None:
    user_id = register(local, "leaving")
    page = open_console(local)

    page.get_by_role("link", name="leaving").click()
    page.get_by_role("link", name="Remove user").click()
    page.get_by_role("link", name="Cancel").click()
    kept = requests.get(f"{local.base}/users/{user_id}", timeout=15).status_code
    page.get_by_role("link", name="Remove user").click()
    page.get_by_role("button", name="Remove user").click()

    expect(page.locator("#status .text")).to_have_text("leaving was removed. This cannot be undone.")
    gone = requests.get(f"{local.base}/users/{user_id}", timeout=15).status_code
    assert (kept, gone) == (200, 404)


def test_list_is_filtered_while_typing(local: Server, open_console: OpenConsole) -> None:
    register(local, "searched for")
    register(local, "not wanted")
    page = open_console(local)

    page.get_by_label("Username or email address").press_sequentially("ARCHED")

    expect(page.locator("#found")).to_have_text("1 user.")
    expect(page.locator("#users tbody tr")).to_have_count(1)
    expect(page.get_by_label("Username or email address")).to_be_focused()
    assert "/console?q=ARCHED&state=" in page.url
    page.get_by_label("State", exact=True).select_option("Disabled")
    expect(page.locator("#found")).to_have_text("No matching users. Show all users")
    page.reload()
    expect(page.get_by_label("State", exact=True)).to_have_value("disabled")


def browser_storage(page: Page) -> list[object]:
    """Return the size of the local storage, and the session storage and cookies that scripts can read."""
    return list(page.evaluate("[localStorage.length, Object.entries(sessionStorage), document.cookie]"))


def test_long_values_leave_room_for_names_and_plans(local: Server, open_console: OpenConsole) -> None:
    for name, plan in (
        ("w" * 240, "pro"),
        ("layout-" + "many words " * 15, "enterprise"),
        ("layout-short", "pro"),
    ):
        user_id = register(local, name.strip(), f"{'e' * 60}@example.com")
        body = {"expires_at": "+30d", "plan": plan}
        response = requests.patch(f"{local.base}/users/{user_id}", json=body, timeout=15)
        assert response.status_code == 200, response.text

    page = open_console(local, viewport={"width": 1280, "height": 800})
    for width in (1280, 1000, 800, 700):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{local.base}/console?q={'e' * 60}")
        plans = page.locator(".users .plan bdi").evaluate_all("all => all.map(each => each.offsetHeight)")
        widths = page.locator(".users .identity").evaluate_all("all => all.map(each => each.offsetWidth)")

        assert len(plans) == 3
        assert max(plans) < 2 * min(plans), width
        assert min(widths) > 100, width
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_browser_storage_holds_only_the_page_address(token_mode: Server, open_console: OpenConsole) -> None:
    user_id = register(token_mode, "kept nowhere")
    page = open_console(token_mode)
    log_in(page)

    page.get_by_label("Username or email address").press_sequentially("nowhere")
    page.wait_for_url("**/console?q=nowhere*")  # a later response to the search would replace the status
    page.get_by_role("button", name="Disable kept nowhere").click()
    expect(page.locator("#status .text")).to_have_text("kept nowhere is disabled.")
    page.goto(f"{token_mode.base}/console/users/{user_id}")

    assert browser_storage(page) == [0, [["htmx-current-path-for-history", f"/console/users/{user_id}"]], ""]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert browser_storage(page) == [0, [["htmx-current-path-for-history", "/console/log-in"]], ""]
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert page.get_by_text("kept nowhere").count() == 0


@pytest.mark.parametrize("with_script", [True, False], ids=["with JavaScript", "without JavaScript"])
def test_names_with_html_are_shown_as_text(local: Server, open_console: OpenConsole, with_script: bool) -> None:
    name = f"{SCRIPT} {IMAGE} {with_script}"
    page = open_console(local, "/users/new", java_script_enabled=with_script)

    page.get_by_label("Username").fill(name)
    page.get_by_label("Email address").fill(f"'{IMAGE}'@example.com")
    page.get_by_label("Password").fill("difference engine")
    page.get_by_role("button", name="Add user").click()

    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.locator("#status .text")).to_have_text(f"{name} was added.")
    page.get_by_label("Name of the new key").fill(SCRIPT)
    page.get_by_role("button", name="Add API key").click()
    expect(page.locator(".keys strong")).to_have_text(SCRIPT)
    page.goto(f"{local.base}/console?q=onerror")
    expect(page.get_by_role("link", name=name)).to_be_visible()
    page.get_by_role("button", name=f"Disable {name}").click()
    expect(page.locator("#status .text")).to_have_text(f"{name} is disabled.")
    assert page.locator("main img, main script").count() == 0


def test_console_works_without_javascript(token_mode: Server, open_console: OpenConsole) -> None:
    page = open_console(token_mode, java_script_enabled=False)
    log_in(page)
    page.get_by_role("link", name="Add user").click()
    page.get_by_label("Username").fill("plain")
    page.get_by_label("Email address").fill("plain")
    page.get_by_label("Password").fill("difference engine")
    page.get_by_role("button", name="Add user").click()
    expect(page.locator("#email-error")).to_have_text("Email address must look like name@example.com.")

    page.get_by_label("Email address").fill("plain@example.com")
    page.get_by_label("Password").fill("difference engine")
    page.get_by_role("button", name="Add user").click()
    page.get_by_role("link", name="All users").click()
    page.get_by_label("Username or email address").fill("plain")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="Disable plain").click()

    expect(page.locator("#status .text")).to_have_text("plain is disabled.")
    expect(page.get_by_label("Username or email address")).to_have_value("plain")


def test_new_api_key_is_shown_once_and_works(local: Server, open_console: OpenConsole) -> None:
    page = open_console(local, f"/users/{register(local, 'machine')}")

    page.get_by_label("Name of the new key").fill("nightly job")
    page.get_by_role("button", name="Add API key").click()

    secret = page.get_by_label("API key", exact=True).input_value()
    headers = {"authorization": f"Bearer {secret}"}
    assert requests.get(f"{local.base}/token_status", headers=headers, timeout=15).status_code == 200
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_role("link", name="machine").click()
    assert secret not in page.content()


def test_reduced_motion_disables_all_transitions(local: Server, open_console: OpenConsole) -> None:
    page = open_console(local, "/users/new", reduced_motion="reduce")

    durations = page.evaluate(
        "[...document.querySelectorAll('*')].map(element => getComputedStyle(element).transitionDuration)"
    )

    assert set(durations) == {"0s"}
