"""Every action with the keyboard alone, and with the mouse but without JavaScript."""

from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Request

from tests.e2e.browser import BrowserMonitor
from tests.pages.actions import ACTIONS, Hand
from tests.pages.visits import pattern_of, patterns, sign_in_as_manager
from tests.pages.world import ADMIN_TOKEN, PASSWORD, World

HANDS = {"keyboard": (True, True), "mouse-without-script": (False, False)}
"""Whether JavaScript is enabled, and whether the keyboard is used instead of the mouse."""


@pytest.mark.parametrize("hand", HANDS)
def test_every_action_works(browser: Browser, world: World, hand: str, subtests: pytest.Subtests) -> None:
    with_script, uses_keyboard = HANDS[hand]
    context = browser.new_context(java_script_enabled=with_script, base_url=world.server.base)
    context.set_default_timeout(30_000)
    monitor, performed = BrowserMonitor(context), set[str | None]()

    def record(request: Request) -> None:
        if request.method == "POST":
            performed.add(pattern_of(urlsplit(request.url).path, "POST"))

    context.on("request", record)
    page = context.new_page()
    sign_in_as_manager("alice")(page, world)
    sign_in_elsewhere(world)
    values = create_user(world, name=f"subject-{hand}")
    for action in ACTIONS:
        with subtests.test(page=action.page, form=action.form):
            Hand(page, uses_keyboard).perform(action, {**values, "hand": hand})

    context.close()
    assert set(patterns("POST")) - performed == set(), "add an Action for each of these forms"
    assert monitor.errors == []


def create_user(world: World, name: str) -> dict[str, str]:
    """Create a user with an API key. Return the values for the templates of actions."""
    admin = requests.Session()
    admin.headers["authorization"] = f"Bearer {ADMIN_TOKEN}"
    base = world.server.base
    body = {"username": name, "password": PASSWORD, "email": "subject@example.com"}
    user = admin.post(f"{base}/register-user", json=body, timeout=15).json()["user_id"]
    keys = [
        admin.post(f"{base}/users/{user}/keys", json={"name": f"{each} key"}, timeout=15).json()["key_id"]
        for each in ("first", "second")
    ]
    link = admin.post(f"{base}/users/{user}/password-link", timeout=15).json()["url"]
    values = {"user": str(user), "name": name, "manager": name.lower(), "link": link.rpartition("/")[2]}
    return {**values, "key": keys[0], "own_key": keys[1]}


def sign_in_elsewhere(world: World) -> None:
    """Sign in as another manager, so that there is a session to end."""
    body = {"token": world.values["bob_token"]}
    headers = {"Origin": world.server.base}
    url = f"{world.server.base}/console/log-in"
    response = requests.post(url, data=body, headers=headers, timeout=15, allow_redirects=False)
    assert response.status_code == 303, response.text
