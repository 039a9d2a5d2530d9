"""Double clicks act once, and never on another user: with mouse and keyboard, with and without JavaScript.

Each test clicks twice on the same spot of the screen, or presses Enter twice, 0 to 800 ms apart. By default, it does so
with one delay while the first click is in flight and one after the next page has appeared. Which ones differs from test
to test. ``make torture`` runs each test with all delays.
"""

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.e2e.browser import MISSING, find_chromium
from tests.e2e.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

ADMIN_TOKEN = "an-admin-token-for-tests"
AS_ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}
SHORT_DELAYS_MS = (0, 50, 150)
LONG_DELAYS_MS = (300, 500, 800)
DELAYS_MS = SHORT_DELAYS_MS + LONG_DELAYS_MS


@attrs.frozen
class Console:
    """A server, and a signed-in browser that sends every click in the same way.

    Attributes:
        delays_ms: the delays to test, between the two clicks.
    """

    server: Server
    page: Page
    by_keyboard: bool
    delays_ms: Sequence[int]

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.server.base}/console{path}")
        return self.page

    def act_twice(self, button: Locator, delay_ms: int) -> list[dict[str, Any]]:
        """Click twice on the same spot, or press Enter twice. Return the audit entries that result."""
        page, before = self.page, max((entry["audit_id"] for entry in self.audit_entries()), default=0)
        button.scroll_into_view_if_needed()
        box = button.bounding_box()
        assert box is not None
        spot = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        button.focus()
        for delay in (0, delay_ms):
            if delay:
                page.wait_for_timeout(delay)
            if self.by_keyboard:
                page.keyboard.press("Enter")
            else:
                page.mouse.click(*spot)
        expect(page.locator("#status .text")).not_to_be_empty()
        page.wait_for_timeout(200)  # for the effect of the second click
        page.wait_for_load_state()
        return self.audit_entries(before)

    def audit_entries(self, after: int = 0) -> list[dict[str, Any]]:
        """Return the audit entries after an id, oldest first."""
        response = requests.get(f"{self.server.base}/audit?limit=50", headers=AS_ADMIN, timeout=15)
        return [entry for entry in reversed(response.json()["entries"]) if entry["audit_id"] > after]

    def register(self, *names: str) -> list[int]:
        ids = []
        for name in names:
            body = {"username": name, "password": "difference engine", "email": "someone@example.com"}
            ids.append(requests.post(f"{self.server.base}/register-user", json=body, timeout=15).json()["user_id"])
        return ids


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("double_clicks")
    (folder / "config.yml").write_text("plans: {pro: {}}\n")
    with Server(folder, {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN}) as running:
        yield running


def sign_in(context: BrowserContext, server: Server) -> Page:
    page = context.new_page()
    page.goto(f"{server.base}/console")
    page.get_by_label("Token").fill(ADMIN_TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console")
    return page


@pytest.fixture(params=["mouse", "Enter"])
def by(request: pytest.FixtureRequest) -> str:
    how: str = request.param
    return how


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def console(request: pytest.FixtureRequest, server: Server, browser: Browser, by: str) -> Iterator[Console]:
    context = browser.new_context(java_script_enabled=request.param, viewport={"width": 1200, "height": 700})
    context.set_default_timeout(10_000)
    yield Console(server, sign_in(context, server), by == "Enter", choose_delays(request))
    context.close()


def choose_delays(request: pytest.FixtureRequest) -> Sequence[int]:
    """Return a short and a long delay, or all of them with ``--torture``."""
    if request.config.getoption("--torture"):
        return DELAYS_MS
    number = zlib.crc32(request.node.name.encode()) % 3  # the same in every run
    return SHORT_DELAYS_MS[number], LONG_DELAYS_MS[number]


def label(request: pytest.FixtureRequest) -> str:
    """Return a text that no other test uses."""
    return f"{abs(hash(request.node.name)) % 10**9}"


def test_double_click_in_the_list_changes_one_user_once(console: Console, request: pytest.FixtureRequest) -> None:
    prefix = f"list{label(request)}"
    ids = console.register(*(f"{prefix}-{number}" for number in range(len(DELAYS_MS) + 2)))

    for number, delay_ms in enumerate(console.delays_ms, start=1):
        page = console.open(f"?q={prefix}")
        entries = console.act_twice(page.get_by_role("button", name=f"Disable {prefix}-{number}"), delay_ms)

        done = [(entry["action"], entry["user_id"]) for entry in entries]
        assert done == [("disable", ids[number])], delay_ms


def test_double_click_far_down_in_the_list_changes_one_user_once(
    console: Console, request: pytest.FixtureRequest
) -> None:
    prefix = f"long{label(request)}"
    ids = console.register(*(f"{prefix}-{number:02}" for number in range(22)))

    for delay_ms in console.delays_ms:
        number = dict(zip(DELAYS_MS, (3, 9, 13, 16, 18, 20), strict=True))[delay_ms]
        page = console.open(f"?q={prefix}")
        entries = console.act_twice(page.get_by_role("button", name=f"Disable {prefix}-{number:02}"), delay_ms)

        done = [(entry["action"], entry["user_id"]) for entry in entries]
        assert done == [("disable", ids[number])], delay_ms


@pytest.mark.parametrize("query", ["", "?state=active"])
def test_double_click_while_the_order_changes_changes_one_user(
    console: Console, request: pytest.FixtureRequest, query: str
) -> None:
    prefix = f"order{label(request)}"
    console.register(*(f"{prefix}-{number:02}" for number in range(25)))

    for delay_ms in console.delays_ms:
        number = dict(zip(DELAYS_MS, (6, 9, 12, 16, 20, 24), strict=True))[delay_ms]
        page = console.open(query)
        button = page.locator("#users form button").nth(number)
        button.evaluate("button => window.scrollBy(0, button.getBoundingClientRect().top - innerHeight / 2)")
        user_id = int((button.get_attribute("id") or "").removeprefix("toggle-"))
        console.register(f"{prefix}-new-{delay_ms}")  # the newest user comes first, so the others move down
        entries = console.act_twice(button, delay_ms)

        assert [entry["user_id"] for entry in entries if entry["action"] != "register"] == [user_id], delay_ms


def test_double_click_on_undo_undoes_once(console: Console, request: pytest.FixtureRequest) -> None:
    name = f"undo{label(request)}"
    (user_id,) = console.register(name)

    for path in (f"?q={name}", f"/users/{user_id}"):
        for delay_ms in console.delays_ms:
            page = console.open(path)
            page.get_by_role("button", name="Disable").click()
            undo = page.get_by_role("button", name="Undo", exact=True)
            undo.wait_for()
            page.wait_for_timeout(1_050)  # Undo ignores the second click of a double click too
            entries = console.act_twice(undo, delay_ms)

            done = [(entry["action"], entry["user_id"]) for entry in entries]
            assert done == [("enable", user_id)], (path, delay_ms)


@attrs.frozen
class UserAction:
    """A button on the page of a user, or on a page that asks for confirmation."""

    button: str
    path: str = ""
    fill: dict[str, str] = attrs.field(factory=dict)


USER_ACTIONS = (
    UserAction("Disable"),
    UserAction("+1 month"),
    UserAction("Set plan"),
    UserAction("Revoke tokens"),
    UserAction("Set password", fill={"New password": "analytical engine"}),
    UserAction("Generate password"),
    UserAction("Make password link"),
    UserAction("Save", fill={"Email address": "other@example.com"}),
    UserAction("Add API key", fill={"Name of the new key": "job"}),
    UserAction("Save metadata", fill={"Metadata": '{"customer": "c"}'}),
    UserAction("Remove API key", "/keys/{key_id}/remove"),
    UserAction("Remove user", "/remove"),
)


def test_double_click_on_the_user_page_acts_once(console: Console, request: pytest.FixtureRequest) -> None:
    prefix = f"page{label(request)}"
    pairs = list(zip(USER_ACTIONS, itertools.cycle(console.delays_ms), strict=False))
    ids = console.register(*(f"{prefix}-{number}" for number in range(len(pairs))))

    for user_id, (action, delay_ms) in zip(ids, pairs, strict=True):
        added = requests.post(
            f"{console.server.base}/users/{user_id}/keys", json={"name": "old"}, headers=AS_ADMIN, timeout=15
        )
        page = console.open(f"/users/{user_id}{action.path.format(key_id=added.json()['key_id'])}")
        for field, text in action.fill.items():
            page.get_by_role("textbox", name=field, exact=True).fill(text)
        entries = console.act_twice(page.get_by_role("button", name=action.button, exact=True), delay_ms)

        done = [(entry["outcome"], entry["user_id"]) for entry in entries]
        assert done == [("done", user_id)], (action, delay_ms, entries)


def test_double_click_shows_the_new_api_key_that_works(console: Console, request: pytest.FixtureRequest) -> None:
    ids = console.register(*(f"key{label(request)}-{delay_ms}" for delay_ms in console.delays_ms))

    for user_id, delay_ms in zip(ids, console.delays_ms, strict=True):
        page = console.open(f"/users/{user_id}")
        page.get_by_label("Name of the new key").fill("job")
        console.act_twice(page.get_by_role("button", name="Add API key"), delay_ms)

        secret = page.get_by_label("API key", exact=True).input_value()
        checked = requests.get(
            f"{console.server.base}/token_status", headers={"authorization": f"Bearer {secret}"}, timeout=15
        )
        assert checked.status_code == 200, delay_ms


def test_double_click_on_a_manager_acts_once(console: Console, request: pytest.FixtureRequest) -> None:
    prefix = f"m{label(request)}"
    for delay_ms in console.delays_ms:
        name = f"{prefix}-{delay_ms}"
        steps: Sequence[tuple[str, str, str]] = (
            ("/managers", "Add manager", "add_manager"),
            (f"/managers/{name}", "Rotate token", "rotate_manager"),
            (f"/managers/{name}/remove", "Remove manager", "remove_manager"),
        )
        for path, button, expected in steps:
            page = console.open(path)
            if path == "/managers":
                page.get_by_label("Name", exact=True).fill(name)
            entries = console.act_twice(page.get_by_role("button", name=button), delay_ms)

            done = [(entry["action"], entry["outcome"]) for entry in entries]
            assert done == [(expected, "done")], (button, delay_ms)


def test_double_click_ends_one_session(console: Console, browser: Browser) -> None:
    contexts = [browser.new_context() for _ in range(len(console.delays_ms) + 2)]
    try:
        for context in contexts:
            sign_in(context, console.server)
        for delay_ms in console.delays_ms:
            page = console.open("/sessions")
            count = page.locator(".keys li").count()
            console.act_twice(page.get_by_role("button", name="End session").nth(1), delay_ms)

            console.open("/sessions")
            assert page.locator(".keys li").count() == count - 1, delay_ms
    finally:
        for context in contexts:
            context.close()


def test_notice_neither_moves_nor_covers_a_control(console: Console, request: pytest.FixtureRequest) -> None:
    prefix = f"still{label(request)}"
    console.register(*(f"{prefix}-{number:02}" for number in range(22)))
    page = console.open(f"?q={prefix}")
    rows = page.locator("#users tbody tr")
    last = page.get_by_role("button", name="Disable").last
    last.scroll_into_view_if_needed()
    scroll = "window.scrollY"
    before = rows.nth(3).bounding_box(), rows.nth(21).bounding_box(), page.evaluate(scroll)

    last.click()
    wait_until(lambda: page.locator("#status .text").text_content() != "")

    assert page.locator("#status .text").is_visible()
    if console.page.evaluate("typeof htmx") == "object":
        assert (rows.nth(3).bounding_box(), rows.nth(21).bounding_box(), page.evaluate(scroll)) == before
    box = page.locator("#status").bounding_box()
    empty = console.open(f"?q={prefix}").locator("#status").bounding_box()
    assert box is not None
    assert empty is not None
    assert (box["width"], box["height"]) == (empty["width"], empty["height"])
