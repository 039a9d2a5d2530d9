from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import MISSING, BrowserMonitor, find_chromium, running_browser
from tests.pages.tabs import Tab
from tests.pages.visits import ROLES
from tests.pages.world import World


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip(MISSING)
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World.start(tmp_path_factory.mktemp("pages"))
    yield world
    world.server.stop()


@pytest.fixture(scope="module")
def tabs(browser: Browser, world: World) -> Iterator[dict[str, Tab]]:
    """The tab of each role, signed in. It loads axe-core into every page."""
    tabs = {}
    for role, sign_in in ROLES.items():
        context = browser.new_context(reduced_motion="reduce", base_url=world.server.base)
        page = context.new_page()
        sign_in(page, world)
        page.add_init_script(path=Path(__file__).parent / "axe" / "axe.min.js")
        tabs[role] = Tab(page, BrowserMonitor(context))
    yield tabs
    for tab in tabs.values():
        tab.page.context.close()
