"""The account in several processes of the real server, on both databases."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from mlapi import UserId
from mlapi.adapters.sql.storage import SqlStorage
from tests.e2e.server import MlapiServer

ADMIN_TOKEN = "an-admin-token-for-tests"
PASSWORD = "difference engine 1843"
WORKERS = 2
PER_USER = 5


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "postgres":
            database = stack.enter_context(request.getfixturevalue("postgres").new_database())
            yield database.render_as_string(hide_password=False)
        else:
            yield f"sqlite:///{tmp_path / 'mlapi.db'}"


@pytest.fixture
def server(url: str, tmp_path: Path) -> Iterator[MlapiServer]:
    environ = {
        "MLAPI_DATABASE__URL": url,
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_KEYS__PER_USER": str(PER_USER),
    }
    with MlapiServer(tmp_path, environ, "--workers", str(WORKERS)) as server:
        yield server


def register(server: MlapiServer, name: str) -> UserId:
    body = {"username": name, "password": PASSWORD, "email": f"{name}@example.com"}
    return UserId(requests.post(f"{server.base}/register-user", json=body, timeout=15).json()["user_id"])


def sign_in(server: MlapiServer, name: str) -> requests.Session:
    """Return the browser of a user who has signed in, without JavaScript."""
    browser = requests.Session()
    browser.headers["origin"] = server.base
    response = browser.post(f"{server.base}/account/sign-in", data={"username": name, "password": PASSWORD}, timeout=15)
    assert "Your account" in response.text
    return browser


def field(page: str, name: str) -> str:
    (value,) = set(re.findall(rf'name="{name}" value="([^"]+)"', page))
    return str(value)


def test_account_works_in_every_process(server: MlapiServer, url: str) -> None:
    ada = register(server, "ada")
    browsers = [sign_in(server, "ada") for _ in range(2)]
    token = requests.post(f"{server.base}/token", json={"username": "ada", "password": PASSWORD}, timeout=15).json()[
        "token"
    ]
    page = browsers[0].get(f"{server.base}/account", timeout=15).text
    form = {"csrf_token": field(page, "csrf_token"), "nonce": field(page, "nonce"), "name": "laptop"}

    def send_form(_number: int) -> str:
        browser = requests.Session()  # a new connection, which may reach the other process
        browser.headers["origin"] = server.base
        browser.cookies.update(browsers[0].cookies)
        return browser.post(f"{server.base}/account/keys", data=form, timeout=15).text

    def add_key(number: int) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return requests.post(
            f"{server.base}/users/me/keys", json={"name": f"key {number}"}, headers=headers, timeout=15
        ).status_code

    with ThreadPoolExecutor(10) as pool:
        pages = list(pool.map(send_form, range(10)))
        statuses = list(pool.map(add_key, range(20)))
    page = browsers[1].get(f"{server.base}/account/sign-out-everywhere", timeout=15).text
    browsers[1].post(
        f"{server.base}/account/sign-out-everywhere", data={"csrf_token": field(page, "csrf_token")}, timeout=15
    )
    after = [
        requests.get(f"{server.base}/account", cookies=browser.cookies, timeout=15, allow_redirects=False).status_code
        for browser in browsers
        for _ in range(10)
    ]
    server.stop()

    secrets = {secret for page in pages for secret in re.findall(r'value="(mlapi_[0-9a-f_]+)"', page)}
    assert len(secrets) == 1
    assert sorted(statuses) == [201] * (PER_USER - 1) + [409] * (20 - PER_USER + 1)
    assert after == [303] * 20
    storage = SqlStorage.from_url(url)
    assert len(storage.users.list_api_keys(ada)) == PER_USER
    assert [login.address for login in storage.logins.list_recent(ada, limit=9)] == ["127.0.0.1"] * 3
    storage.close()
