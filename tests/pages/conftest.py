from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import MISSING, find_chromium, running_browser
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
