"""Every action with the mouse, with the keyboard alone, and without JavaScript."""

from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Request

from tests.e2e.browser import BrowserMonitor
from tests.pages.actions import ACTIONS, Hand
from tests.pages.visits import pattern_of, patterns, sign_in_as_admin
from tests.pages.world import ADMIN_TOKEN, PASSWORD, World

HANDS = {"mouse": (True, False), "keyboard": (True, True), "no JavaScript": (False, False)}


@pytest.mark.parametrize("hand", HANDS)
def test_every_action_works(browser: Browser, world: World, hand: str, subtests: pytest.Subtests) -> None:
    with_script, uses_keyboard = HANDS[hand]
    context = browser.new_context(java_script_enabled=with_script, base_url=world.server.base)
    context.set_default_timeout(10_000)
    monitor, performed = BrowserMonitor(context), set[str | None]()

    def record(request: Request) -> None:
        if request.method == "POST":
            performed.add(pattern_of(urlsplit(request.url).path, "POST"))

    context.on("request", record)
    page = context.new_page()
    sign_in_as_admin(page, world)
    values = create_user(world, name=f"subject-{hand.replace(' ', '-')}")
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
