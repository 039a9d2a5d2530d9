"""Tokens and API keys over HTTP, with several server processes that share one database."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

from tests.e2e.server import Server

PASSWORD = "c4n4ry difference engine"
ADA = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"}
TOGGLES = 50


class Pair(NamedTuple):
    """Two server processes that share one database."""

    first: Server
    second: Server


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers that several tests share, because starting one takes longer than most tests."""
    folder = tmp_path_factory.mktemp("pair")
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/mlapi.db"
        if request.param == "postgres":
            postgres_url = stack.enter_context(request.getfixturevalue("postgres").new_database())
            url = postgres_url.render_as_string(hide_password=False)
        environ = {"MLAPI_DATABASE__URL": url, "MLAPI_LOGINS__PER_ADDRESS": "100000"}
        yield Pair(*(stack.enter_context(Server(folder, environ)) for _ in range(2)))


def register(server: Server, username: str = "ada") -> int:
    body = {**ADA, "username": username}
    user_id: int = requests.post(f"{server.base}/register-user", json=body, timeout=15).json()["user_id"]
    return user_id


def log_in(server: Server, password: str = PASSWORD, username: str = "ada") -> requests.Response:
    return requests.post(f"{server.base}/token", json={"username": username, "password": password}, timeout=15)


def issue_token(server: Server, username: str = "ada") -> str:
    token: str = log_in(server, username=username).json()["token"]
    return token


def add_api_key(server: Server, user_id: int) -> str:
    key: str = requests.post(f"{server.base}/users/{user_id}/keys", json={"name": "job"}, timeout=15).json()["key"]
    return key


def is_accepted(server: Server, credential: str, session: requests.Session | None = None) -> bool:
    headers = {"authorization": f"Bearer {credential}"}
    response = (session or requests).get(f"{server.base}/token_status", headers=headers, timeout=15)
    assert response.status_code in {200, 401}
    return response.status_code == 200


def set_enabled(server: Server, user_id: int, flag: int, session: requests.Session | None = None) -> None:
    response = (session or requests).put(f"{server.base}/toggle-user-permission/{user_id}/{flag}", timeout=15)
    assert response.status_code == 200


def test_disabled_user_is_rejected_by_other_processes(pair: Pair) -> None:
    user_id = register(pair.first, "alice")
    key = add_api_key(pair.first, user_id)
    accepted = []

    with requests.Session() as to_first, requests.Session() as to_second:
        for _ in range(TOGGLES):
            set_enabled(pair.first, user_id, 0, to_first)
            accepted.append(is_accepted(pair.second, key, to_second))
            set_enabled(pair.first, user_id, 1, to_first)
            accepted.append(is_accepted(pair.second, key, to_second))

    assert accepted == [False, True] * TOGGLES


def test_no_concurrent_request_is_accepted_after_disabling(pair: Pair) -> None:
    user_id = register(pair.first, "bob")
    key = add_api_key(pair.first, user_id)
    accepted: list[tuple[float, float]] = []
    disabled: list[tuple[float, float]] = []
    done = threading.Event()

    def send_requests() -> None:
        with requests.Session() as session:
            while not done.is_set():
                begin = time.monotonic()
                if is_accepted(pair.second, key, session):
                    accepted.append((begin, time.monotonic()))

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(send_requests) for _ in range(4)]
        for _ in range(TOGGLES // 2):
            set_enabled(pair.first, user_id, 0)
            begin = time.monotonic()
            time.sleep(0.02)
            disabled.append((begin, time.monotonic()))
            set_enabled(pair.first, user_id, 1)
            time.sleep(0.01)
        done.set()
        for client in clients:
            client.result()

    accepted_while_disabled = [
        (begin, end) for begin, end in accepted for since, until in disabled if since < begin and end < until
    ]
    assert accepted_while_disabled == []
    assert len(accepted) > len(disabled)  # some requests were accepted while the user was enabled


@pytest.mark.parametrize("how", ["disable", "password", "own password", "revoke tokens", "revoke own tokens", "remove"])
def test_revoked_token_is_rejected_by_every_process(pair: Pair, how: str) -> None:
    server, name = pair.first, f"user {how}"
    user_id = register(server, name)
    token = issue_token(server, name)
    own = {"authorization": f"Bearer {token}"}
    before = is_accepted(pair.second, token)

    match how:
        case "disable":
            set_enabled(server, user_id, 0)
            set_enabled(server, user_id, 1)
        case "password":
            requests.put(f"{server.base}/users/{user_id}/password", json={"password": "another"}, timeout=15)
        case "own password":
            body = {"current": PASSWORD, "new": "another"}
            requests.put(f"{server.base}/users/me/password", json=body, headers=own, timeout=15)
        case "revoke tokens":
            requests.delete(f"{server.base}/users/{user_id}/tokens", timeout=15)
        case "revoke own tokens":
            requests.delete(f"{server.base}/users/me/tokens", headers=own, timeout=15)
        case "remove":
            requests.delete(f"{server.base}/remove-user/{user_id}", timeout=15)
            register(server, name)  # another user with the same name

    assert (before, is_accepted(pair.second, token)) == (True, False)


def test_login_attempts_are_counted_across_processes(pair: Pair) -> None:
    register(pair.first, "guessed")

    statuses = [log_in(server, "wrong", "guessed").status_code for server in (*pair, *pair) * 8]

    assert statuses == [401] * 20 + [429] * 12


def test_rate_limited_login_does_not_affect_existing_tokens(tmp_path: Path) -> None:
    with Server(tmp_path, {"MLAPI_LOGINS__PER_ADDRESS": "3"}) as server:
        register(server)
        token = issue_token(server)

        responses = [log_in(server, "wrong", username=f"unknown{number}") for number in range(4)]

        rejected = responses[-1]
        assert [response.status_code for response in responses] == [401, 401, 401, 429]
        assert rejected.json() == {"message": "Too many attempts, try again later"}
        assert 1 <= int(rejected.headers["retry-after"]) <= 60
        assert is_accepted(server, token)


@pytest.mark.parametrize("level", ["info", "trace"])
def test_credentials_are_never_logged(tmp_path: Path, level: str) -> None:
    with Server(tmp_path, {}, "--log-level", level) as server:
        user_id = register(server)
        token, key = issue_token(server), add_api_key(server, user_id)
        for secret in (token, key, token[:-2]):
            requests.get(f"{server.base}/token_status/{secret}", timeout=15)
            requests.get(f"{server.base}/token_status//{secret}", timeout=15)
            requests.get(f"{server.base}/token_status/x/{secret}", timeout=15)
            requests.get(f"{server.base}/{secret}", timeout=15)
            requests.get(f"{server.base}/keys/{secret}/x", timeout=15)
            requests.get(f"{server.base}/health/live?token={secret}", timeout=15)
            requests.delete(f"{server.base}/keys/{secret}", timeout=15)
            is_accepted(server, secret)
        log_in(server, "c4n4ry wrong")

    log = server.log

    assert log.count("redacted") >= 9
    for secret in (token, key, key.rpartition("_")[2], token.rpartition(".")[2], "c4n4ry", "token="):
        assert secret not in log
