"""Take the README's screenshot of the console: ``python -m tests.e2e.console_picture``. This needs Chromium.

Given a folder, take screenshots of every page instead: in light and dark mode, and at desktop and phone widths.
"""

import random
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize

from mlapi import UserId, Users
from mlapi.adapters.memory import PlainCipher
from mlapi.bootstrap import open_service
from mlapi.config import load_settings, make_plans
from mlapi.domain.usage import UsageRow
from tests.e2e.browser import running_browser
from tests.e2e.server import ROOT, Server

SCREENSHOT = ROOT / "docs" / "console.png"
USERS = (
    ("ada.lovelace", "ada@analytical.example"),
    ("alan.turing", "turing@bletchley.example"),
    ("grace.hopper", "grace@navy.example"),
    ("katherine.johnson", "kj@langley.example"),
    ("edsger.dijkstra", "edsger@eindhoven.example"),
    ("barbara.liskov", "liskov@mit.example"),
    ("claude.shannon", "claude@bell-labs.example"),
    ("radia.perlman", "radia@sun.example"),
    ("karen.spärck-jones", "ksj@cam.example"),
    ("tony.hoare", "tony@oxford.example"),
    ("frances.allen", "fran@ibm.example"),
    ("nightly-batch", "ml-platform@example.com"),
)
DISABLED = ("edsger.dijkstra", "tony.hoare")
PLANS = "plans: {free: {per_minute: 60}, pro: {per_minute: 600}}\ndefault_plan: free\n"
ENDS = {"ada.lovelace": 2, "grace.hopper": 5, "radia.perlman": 40, "claude.shannon": -3, "nightly-batch": 90}
"""The days until access expires."""
DAYS = 30
SATURDAY = 5
VARIANTS: tuple[tuple[str, int, Literal["light", "dark"]], ...] = (
    ("light", 1280, "light"),
    ("dark", 1280, "dark"),
    ("phone", 320, "light"),
    ("phone-dark", 320, "dark"),
)


def create_database(folder: Path) -> None:
    """Create a database with the demo users, and with guests who were added and removed in the last month."""
    rng = random.Random(7)  # a fixed seed, so that only the dates in the picture change
    now = at = datetime.now(UTC).replace(hour=9, minute=30)
    config = folder / "config.yml"
    config.write_text(PLANS)
    settings = load_settings(config, environ={"MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db"})
    with open_service(settings) as service:
        users = Users(service.users.repository, PlainCipher(), clock=lambda: at, plans=lambda: make_plans(settings))
        remaining = list(USERS)
        removals: dict[int, list[UserId]] = {}  # the guests to remove on each day
        for day in range(DAYS):
            at = now - timedelta(days=DAYS - 1 - day)
            for number in range(min((DAYS - 1 - day) // 2, rng.randint(0, 3) + day // 6)):
                guest = f"guest-{day}-{number}"
                guest_user = users.register(username=guest, password="-", email=f"{guest}@example.com")
                removals.setdefault(min(day + rng.randint(1, 9), DAYS - 1), []).append(guest_user.id)
            for name, email in remaining[: day % 2] if day < DAYS - 2 else remaining:
                users.register(username=name, password="-", email=email)
                remaining = remaining[1:]
            for user_id in removals.pop(day, []):
                users.remove(user_id=user_id)
        for name in DISABLED:
            users.set_enabled(user_id=_id(users, name), enabled=False)
        for name, days in ENDS.items():
            users.update(user_id=_id(users, name), expires=now + timedelta(days=days), plan="pro")
        users.add_api_key(user_id=_id(users, "nightly-batch"), name="nightly scoring job")
        users.add_api_key(
            user_id=_id(users, "nightly-batch"), name="backfill", expires_datetime=now + timedelta(days=90)
        )
        service.usage.add(list(_create_usage(users, rng, now)))


def _create_usage(users: Users, rng: random.Random, now: datetime) -> Iterator[UsageRow]:
    """Yield the usage of the demo users in the last month. On weekends, they send few requests."""
    keys = users.list_api_keys(_id(users, "nightly-batch"))
    credentials = [*((_id(users, name), None) for name, _email in USERS), *((key.user_id, key.id) for key in keys)]
    for day in range(DAYS):
        at = now - timedelta(days=day)
        for user_id, key_id in credentials:
            requests = rng.randint(1, 4 if at.weekday() >= SATURDAY else 400)
            yield UsageRow(
                day=at.date(),
                user_id=user_id,
                key_id=key_id,
                requests=requests,
                units=requests * rng.randint(200, 900) if key_id else 0,
                seen_datetime=at,
            )


def take_screenshot(browser: Browser, base: str, file: Path) -> None:
    context = browser.new_context(viewport=ViewportSize(width=1280, height=800))
    page = context.new_page()
    page.goto(f"{base}/console")
    page.screenshot(path=file, full_page=True)
    context.close()


def take_all_screenshots(browser: Browser, base: str, folder: Path) -> None:
    for name, width, scheme in VARIANTS:
        context = browser.new_context(viewport=ViewportSize(width=width, height=800), color_scheme=scheme)
        page = context.new_page()
        page.goto(f"{base}/console")
        user_path = page.get_by_role("link", name="nightly-batch").get_attribute("href")
        for title, path in {
            "users": "/console",
            "no-match": "/console?q=nobody",
            "ending": "/console?state=ending",
            "add": "/console/users/new",
            "user": user_path,
            "remove": f"{user_path}/remove",
            "usage": "/console/usage",
            "activity": "/console/activity",
        }.items():
            page.goto(f"{base}{path}")
            page.screenshot(path=folder / f"{title}-{name}.png", full_page=True)
        page.goto(f"{base}/console/users/new")
        page.get_by_label("Username").fill("ada.lovelace ")
        page.get_by_label("Email address").fill("ada")
        page.get_by_label("Password").fill(" ")
        page.get_by_role("button", name="Add user").click()
        page.screenshot(path=folder / f"errors-{name}.png", full_page=True)
        page.goto(f"{base}{user_path}")
        page.get_by_label("Name of the new key").fill("weekly report")
        page.get_by_role("button", name="Add API key").click()
        page.screenshot(path=folder / f"key-{name}.png", full_page=True)
        page.goto(f"{base}/console")
        page.get_by_role("button", name="Disable").first.click()
        page.wait_for_selector("#status:not(:empty)")
        page.screenshot(path=folder / f"flash-{name}.png", full_page=True)
        page.get_by_role("button", name="Enable ").first.click()
        context.close()


def _id(users: Users, name: str) -> UserId:
    user = users.find(name)
    assert user is not None
    return user.id


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_database(folder)
        with Server(folder) as server, running_browser() as browser:
            if len(sys.argv) > 1:
                take_all_screenshots(browser, server.base, Path(sys.argv[1]))
            else:
                take_screenshot(browser, server.base, SCREENSHOT)


if __name__ == "__main__":
    main()
