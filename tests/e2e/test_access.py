"""Tokens, API keys and key rotation over HTTP, with several server processes that share one database."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from sqlalchemy import URL

from tests.e2e.server import ROOT, Server

PASSWORD = "c4n4ry difference engine"
ADA = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"}
TOGGLES = 150

StartServer = Callable[..., Server]


@pytest.fixture
def environ(url: URL) -> dict[str, str]:
    return {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}


@pytest.fixture
def start_server(tmp_path: Path, environ: dict[str, str]) -> Iterator[StartServer]:
    """Return a function that starts a server process. All servers share the test's database."""
    servers: list[Server] = []

    def start(*options: str, **more: str) -> Server:
        servers.append(Server(tmp_path, {**environ, **more}, *options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


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
        for _ in range(TOGGLES // 5):
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


def test_login_attempts_are_counted_across_processes(start_server: StartServer) -> None:
    servers = [start_server(), start_server()]
    register(servers[0])

    statuses = [log_in(server, "wrong").status_code for server in servers * 15]

    assert statuses == [401] * 20 + [429] * 10


def test_rate_limited_login_does_not_affect_existing_tokens(start_server: StartServer) -> None:
    server = start_server(MLAPI_LOGINS__PER_ADDRESS="3")
    register(server)
    token = issue_token(server)

    responses = [log_in(server, "wrong", username=f"unknown{number}") for number in range(4)]

    rejected = responses[-1]
    assert [response.status_code for response in responses] == [401, 401, 401, 429]
    assert rejected.json() == {"message": "Too many attempts, try again later"}
    assert 1 <= int(rejected.headers["retry-after"]) <= 60
    assert is_accepted(server, token)


@pytest.mark.parametrize("level", ["info", "trace"])
def test_credentials_are_never_logged(start_server: StartServer, level: str) -> None:
    server = start_server("--log-level", level)
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


# --- key rotation


def start_command(folder: Path, environ: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    """Start an ``mlapi`` command, with a shorter wait in key rotations."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLAPI_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.fast_rotation", *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_login_fails_during_key_rotation(start_server: StartServer, tmp_path: Path, environ: dict[str, str]) -> None:
    servers = [start_server(), start_server()]
    for number in range(5):
        register(servers[number % 2], f"user{number}")
    token = issue_token(servers[0], "user0")
    statuses: list[int] = []
    done = threading.Event()

    def log_in_repeatedly(number: int) -> None:
        while not done.wait(0.1):
            statuses.append(log_in(servers[len(statuses) % 2], username=f"user{number}").status_code)

    def run(*arguments: str) -> str:
        process = start_command(tmp_path, environ, *arguments)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(log_in_repeatedly, number) for number in range(3)]
        rotated = run("secrets", "rotate")
        run("secrets", "rotate", "--salt")
        run("secrets", "rotate", "--tokens")
        time.sleep(1.5)  # servers reload the keys every second
        valid_after_rotation = [is_accepted(server, token) for server in servers]
        pruned = run("secrets", "prune")
        deadline = time.monotonic() + 30
        while any(is_accepted(server, token) for server in servers) and time.monotonic() < deadline:
            time.sleep(0.05)
        valid_after_pruning = [is_accepted(server, token) for server in servers]
        done.set()
        for client in clients:
            client.result()

    assert rotated.startswith("every password is encrypted with the newest key; ")
    assert valid_after_rotation == [True, True]
    assert pruned == "kept salts: 2 users have not logged in since the newest was added\npruned\n"
    assert valid_after_pruning == [False, False]
    assert set(statuses) == {200}
    assert len(statuses) > 50
    assert [log_in(servers[0], username=f"user{number}").status_code for number in range(5)] == [200] * 5


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_next_key_rotation_completes_an_interrupted_one(
    start_server: StartServer, tmp_path: Path, environ: dict[str, str]
) -> None:
    server, secrets = start_server(), tmp_path / "secrets.yml"
    register(server)

    killed = start_command(tmp_path, environ, "secrets", "rotate")
    deadline = time.monotonic() + 60
    while "- " not in secrets.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    keys = secrets.read_text().count("\n- ")
    status_between = log_in(server).status_code
    resumed = start_command(tmp_path, environ, "secrets", "rotate")
    resumed.communicate(timeout=60)

    assert (keys, status_between, resumed.returncode) == (2, 200, 0)
    assert secrets.read_text().count("\n- ") == 2
    assert start_command(tmp_path, environ, "secrets", "prune").communicate(timeout=60)[0] == "pruned\n"
    assert log_in(server).status_code == 200
