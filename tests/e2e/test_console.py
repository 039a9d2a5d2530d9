"""The console in a real browser, without a window: by mouse, by keyboard alone, without JavaScript, on a phone.

Each test ends with what the browser had to say: no other host was asked, and no policy was broken.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.e2e.browser import MISSING, Watch, chromium, running_browser
from tests.e2e.server import Server

pytestmark = pytest.mark.skipif(chromium() is None, reason=MISSING)

ADMIN_TOKEN = "an-admin-token-for-tests"
SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img/src=x/onerror=alert(1)>"
REFUSED = ("status of 401 (Unauthorized)", "status of 422 (Unprocessable Entity)")
"""What Chromium says of a page that answers a form that was filled in wrongly."""
PHONE = ViewportSize(width=320, height=640)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

CONTRAST = """
() => {
  // WCAG 2.2, 1.4.3: the text of each element that has some of its own, against the first ground behind it.
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!hasText || element.closest("svg")) continue;
    const both = [channels(getComputedStyle(element).color), ground(element)].map(luminance);
    const [light, dark] = both.sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) weak.push(`${element.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return weak;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("local")) as server:
        yield server


@pytest.fixture(scope="module")
def by_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("token"), {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN}) as server:
        yield server


ConsoleRequest = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[ConsoleRequest]:
    """Open the console of a server in a new context; all are watched until the test ends."""
    opened: list[tuple[Server, Watch]] = []
    contexts = []

    def open_console(server: Server, path: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        opened.append((server, Watch(context)))
        page = context.new_page()
        page.goto(f"{server.base}/console{path}")
        return page

    yield open_console
    for context in contexts:
        context.close()
    for server, watch in opened:
        assert watch.hosts == {urlsplit(server.base).netloc}
        assert [complaint for complaint in watch.complaints if not complaint.endswith(REFUSED)] == []


def registered(server: Server, username: str, email: str = "someone@example.com") -> int:
    body = {"username": username, "password": "difference engine", "email": email}
    answer = requests.post(f"{server.base}/register-user", json=body, timeout=15)
    assert answer.status_code == 201, answer.text
    user_id: int = answer.json()["user_id"]
    return user_id


def is_enabled(server: Server, user_id: int) -> bool:
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    enabled: bool = requests.get(f"{server.base}/users/{user_id}", headers=headers, timeout=15).json()["enabled"]
    return enabled


def log_in(page: Page, token: str = ADMIN_TOKEN) -> None:
    page.get_by_label("Admin token").fill(token)
    page.get_by_role("button", name="Log in").click()


def tab_to(page: Page, name: str) -> None:
    """Press the tabulator until something of this name has the focus, as somebody without a mouse does."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim().replace(/\\s+/g, ' ')") == name:
            return
    raise AssertionError(f"{name} cannot be reached with the tabulator")


def test_the_admin_token_opens_and_the_log_out_closes(by_token: Server, visit: ConsoleRequest) -> None:
    page = visit(by_token)
    log_in(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("Users")

    page.get_by_role("button", name="Log out").click()

    expect(page.get_by_role("status")).to_have_text("You are logged out.")
    page.goto(f"{by_token.base}/console")
    expect(page.get_by_role("heading", level=1)).to_have_text("Log in")


def test_a_wrong_token_is_told(by_token: Server, visit: ConsoleRequest) -> None:
    page = visit(by_token)

    log_in(page, "wrong")

    expect(page.get_by_role("alert")).to_have_text("This is not the admin token.")
    expect(page.get_by_label("Admin token")).to_be_focused()
    expect(page.get_by_label("Admin token")).to_have_value("")


@pytest.mark.parametrize("mode", ["local", "by_token"])
def test_a_switch_is_made_by_keyboard_alone_and_keeps_the_focus(
    request: pytest.FixtureRequest, visit: ConsoleRequest, mode: str
) -> None:
    server: Server = request.getfixturevalue(mode)
    user_id = registered(server, "keyboard")
    page = visit(server)
    if mode == "by_token":
        log_in(page)
        expect(page.get_by_role("heading", level=1)).to_have_text("Users")
        page.wait_for_load_state()

    tab_to(page, "Disable keyboard")
    page.keyboard.press("Enter")

    expect(page.locator("#status")).to_have_text("keyboard is disabled.")
    expect(page.get_by_role("button", name="Enable keyboard")).to_be_focused()
    if mode == "by_token":
        assert not is_enabled(server, user_id)
    page.keyboard.press("Space")
    expect(page.locator("#status")).to_have_text("keyboard is enabled.")
    expect(page.get_by_role("button", name="Disable keyboard")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_user_is_removed_only_if_the_question_is_answered(local: Server, visit: ConsoleRequest) -> None:
    user_id = registered(local, "leaving")
    page = visit(local)

    page.get_by_role("link", name="leaving").click()
    page.get_by_role("link", name="Remove user").click()
    page.get_by_role("link", name="Cancel").click()
    kept = requests.get(f"{local.base}/users/{user_id}", timeout=15).status_code
    page.get_by_role("link", name="Remove user").click()
    page.get_by_role("button", name="Remove user").click()

    expect(page.locator("#status")).to_have_text("leaving is removed.")
    gone = requests.get(f"{local.base}/users/{user_id}", timeout=15).status_code
    assert (kept, gone) == (200, 404)


def test_the_list_is_searched_while_one_types(local: Server, visit: ConsoleRequest) -> None:
    registered(local, "searched for")
    registered(local, "not wanted")
    page = visit(local)

    page.get_by_label("Name or e-mail address").press_sequentially("ARCHED")

    expect(page.locator("#found")).to_have_text("1 user.")
    expect(page.locator("#users tbody tr")).to_have_count(1)
    expect(page.get_by_label("Name or e-mail address")).to_be_focused()
    assert page.url.endswith("/console?q=ARCHED&enabled=")
    page.get_by_label("State").select_option("Disabled")
    expect(page.locator("#found")).to_have_text("No user matches.")
    page.reload()
    expect(page.get_by_label("State")).to_have_value("0")


def kept(page: Page) -> list[object]:
    return list(page.evaluate("[localStorage.length, Object.entries(sessionStorage), document.cookie]"))


def test_the_browser_keeps_the_address_of_the_page_alone_and_nothing_after_the_log_out(
    by_token: Server, visit: ConsoleRequest
) -> None:
    user_id = registered(by_token, "kept nowhere")
    page = visit(by_token)
    log_in(page)

    page.get_by_label("Name or e-mail address").press_sequentially("nowhere")
    page.get_by_role("button", name="Disable kept nowhere").click()
    expect(page.locator("#status")).to_have_text("kept nowhere is disabled.")
    page.goto(f"{by_token.base}/console/users/{user_id}")

    assert kept(page) == [0, [["htmx-current-path-for-history", f"/console/users/{user_id}"]], ""]
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
    assert kept(page) == [0, [["htmx-current-path-for-history", "/console/log-in"]], ""]
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
    assert page.get_by_text("kept nowhere").count() == 0


@pytest.mark.parametrize("with_script", [True, False], ids=["with JavaScript", "without"])
def test_names_that_would_be_html_are_shown_as_text(local: Server, visit: ConsoleRequest, with_script: bool) -> None:
    name = f"{SCRIPT} {IMAGE} {with_script}"
    page = visit(local, "/users/new", java_script_enabled=with_script)

    page.get_by_label("Username").fill(name)
    page.get_by_label("E-mail address").fill(f"'{IMAGE}'@example.com")
    page.get_by_label("Password").fill("difference engine")
    page.get_by_role("button", name="Add user").click()

    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.locator("#status")).to_have_text(f"{name} is registered.")
    page.get_by_label("Name of a new key").fill(SCRIPT)
    page.get_by_role("button", name="Add key").click()
    expect(page.locator(".keys strong")).to_have_text(SCRIPT)
    page.goto(f"{local.base}/console?q=onerror")
    expect(page.get_by_role("link", name=name)).to_be_visible()
    page.get_by_role("button", name=f"Disable {name}").click()
    expect(page.locator("#status")).to_have_text(f"{name} is disabled.")
    assert page.locator("main img, main script").count() == 0


def test_all_of_it_works_without_javascript(by_token: Server, visit: ConsoleRequest) -> None:
    page = visit(by_token, java_script_enabled=False)
    log_in(page)
    page.get_by_role("link", name="Add user").click()
    page.get_by_label("Username").fill("plain")
    page.get_by_label("E-mail address").fill("plain")
    page.get_by_label("Password").fill("difference engine")
    page.get_by_role("button", name="Add user").click()
    expect(page.locator("#email-wrong")).to_have_text("E-mail address must look like name@example.com.")

    page.get_by_label("E-mail address").fill("plain@example.com")
    page.get_by_label("Password").fill("difference engine")
    page.get_by_role("button", name="Add user").click()
    page.get_by_role("link", name="All users").click()
    page.get_by_label("Name or e-mail address").fill("plain")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("button", name="Disable plain").click()

    expect(page.locator("#status")).to_have_text("plain is disabled.")
    expect(page.get_by_label("Name or e-mail address")).to_have_value("plain")


def test_a_key_is_shown_once(local: Server, visit: ConsoleRequest) -> None:
    page = visit(local, f"/users/{registered(local, 'machine')}")

    page.get_by_label("Name of a new key").fill("nightly job")
    page.get_by_role("button", name="Add key").click()

    secret = page.get_by_label("API key", exact=True).input_value()
    headers = {"authorization": f"Bearer {secret}"}
    assert requests.get(f"{local.base}/token_status", headers=headers, timeout=15).status_code == 200
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_role("link", name="machine").click()
    assert secret not in page.content()


def test_no_page_scrolls_sideways_on_a_phone(local: Server, visit: ConsoleRequest) -> None:
    user_id = registered(local, "W" * 200, f"{'w' * 60}@{'example' * 8}.com")
    requests.post(f"{local.base}/users/{user_id}/keys", json={"name": "k" * 100}, timeout=15)
    page = visit(local, viewport=PHONE)

    wider = {}
    for path in ("", "/users/new", f"/users/{user_id}", f"/users/{user_id}/remove", "/activity"):
        page.goto(f"{local.base}/console{path}")
        wider[path] = page.evaluate(OVERFLOW)

    assert wider == dict.fromkeys(wider, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(local: Server, visit: ConsoleRequest, scheme: str) -> None:
    user_id = registered(local, f"contrast in {scheme}")
    page = visit(local, color_scheme=scheme)
    page.get_by_role("button", name=f"Disable contrast in {scheme}").click()
    expect(page.locator("#status")).not_to_be_empty()

    weak = page.evaluate(CONTRAST)
    page.goto(f"{local.base}/console/users/{user_id}/remove")
    weak += page.evaluate(CONTRAST)
    page.goto(f"{local.base}/console/users/{user_id}")
    weak += page.evaluate(CONTRAST)

    assert weak == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 22, 21)") == (scheme == "dark")


def test_nothing_moves_for_whoever_wants_no_motion(local: Server, visit: ConsoleRequest) -> None:
    page = visit(local, "/users/new", reduced_motion="reduce")

    durations = page.evaluate(
        "[...document.querySelectorAll('*')].map(each => getComputedStyle(each).transitionDuration)"
    )

    assert set(durations) == {"0s"}
