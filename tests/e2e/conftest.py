from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import running_browser
from tests.e2e.deployed_proxies import SETTINGS, Account, register
from tests.e2e.server import MlapiServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlapiServer]:
    """A service whose `/verify` proxies call. The plan ``trial`` allows two requests a day."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "config.yml").write_text("plans: {trial: {per_day: 2, per_month: 100}}\n")
    with MlapiServer(folder, SETTINGS) as server:
        yield server


@pytest.fixture(scope="session")
def ada(verifier: MlapiServer) -> Account:
    """A user of this service."""
    return register(verifier, "ada")
