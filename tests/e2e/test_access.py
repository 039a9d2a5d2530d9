"""Letting in and shutting out, as it is seen from outside: several processes over one database."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from sqlalchemy import URL

from tests.e2e.server import Server

PASSWORD = "c4n4ry difference engine"
ADA = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"}
TURNS = 150
"""How often a user is shut out and let in again."""


@pytest.fixture
def environ(url: URL) -> dict[str, str]:
    return {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}


@pytest.fixture
def serve(tmp_path: Path, environ: dict[str, str]) -> Iterator[Callable[..., Server]]:
    """Start servers over one database, each a process of its own."""
    started: list[Server] = []

    def start(*options: str, **more: str) -> Server:
        started.append(Server(tmp_path, {**environ, **more}, *options))
        return started[-1].start()

    yield start
    for server in started:
        server.stop()


Serve = Callable[..., Server]


def registered(server: Server, username: str = "ada") -> int:
    body = {**ADA, "username": username}
    user_id: int = requests.post(f"{server.base}/register-user", json=body, timeout=15).json()["user_id"]
    return user_id


def logged_in(server: Server, password: str = PASSWORD, username: str = "ada") -> requests.Response:
    return requests.post(f"{server.base}/token", json={"username": username, "password": password}, timeout=15)


def token(server: Server, password: str = PASSWORD) -> str:
    issued: str = logged_in(server, password).json()["token"]
    return issued


def api_key(server: Server, user_id: int) -> str:
    made: str = requests.post(f"{server.base}/users/{user_id}/keys", json={"name": "job"}, timeout=15).json()["key"]
    return made


def is_let_in(server: Server, credential: str, session: requests.Session | None = None) -> bool:
    headers = {"authorization": f"Bearer {credential}"}
    response = (session or requests).get(f"{server.base}/token_status", headers=headers, timeout=15)
    assert response.status_code in {200, 401}
    return response.status_code == 200


def set_enabled(server: Server, user_id: int, flag: int, session: requests.Session | None = None) -> None:
    response = (session or requests).put(f"{server.base}/toggle-user-permission/{user_id}/{flag}", timeout=15)
    assert response.status_code == 200


def test_who_is_shut_out_by_one_process_is_refused_by_another_at_once_each_time(serve: Serve) -> None:
    here, there = serve(), serve()
    user_id = registered(here)
    key = api_key(here, user_id)
    seen = []

    with requests.Session() as to_here, requests.Session() as to_there:
        for _ in range(TURNS):
            set_enabled(here, user_id, 0, to_here)
            seen.append(is_let_in(there, key, to_there))
            set_enabled(here, user_id, 1, to_here)
            seen.append(is_let_in(there, key, to_there))

    assert seen == [False, True] * TURNS


def test_no_request_that_begins_after_a_shut_out_is_let_in_while_many_run(serve: Serve) -> None:
    here, there = serve(), serve()
    user_id = registered(here)
    key = api_key(here, user_id)
    asked: list[tuple[float, float]] = []
    shut_out: list[tuple[float, float]] = []
    done = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            while not done.is_set():
                begun = time.monotonic()
                if is_let_in(there, key, session):
                    asked.append((begun, time.monotonic()))

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(ask) for _ in range(4)]
        for _ in range(TURNS // 5):
            set_enabled(here, user_id, 0)
            begun = time.monotonic()
            time.sleep(0.02)
            shut_out.append((begun, time.monotonic()))
            set_enabled(here, user_id, 1)
            time.sleep(0.01)
        done.set()
        for asker in askers:
            asker.result()

    let_in = [(begun, ended) for begun, ended in asked for since, until in shut_out if since < begun and ended < until]
    assert let_in == []
    assert len(asked) > len(shut_out)  # they were let in between


@pytest.mark.parametrize("how", ["disable", "password", "own password", "end tokens", "end own tokens", "remove"])
def test_whatever_ends_a_token_ends_it_for_every_process_and_for_good(serve: Serve, how: str) -> None:
    here, there = serve(), serve()
    user_id = registered(here)
    credential = token(here)
    mine = {"authorization": f"Bearer {credential}"}
    before = is_let_in(there, credential)

    match how:
        case "disable":
            set_enabled(here, user_id, 0)
            set_enabled(here, user_id, 1)
        case "password":
            requests.put(f"{here.base}/users/{user_id}/password", json={"password": "another"}, timeout=15)
        case "own password":
            body = {"current": PASSWORD, "new": "another"}
            requests.put(f"{here.base}/users/me/password", json=body, headers=mine, timeout=15)
        case "end tokens":
            requests.delete(f"{here.base}/users/{user_id}/tokens", timeout=15)
        case "end own tokens":
            requests.delete(f"{here.base}/users/me/tokens", headers=mine, timeout=15)
        case "remove":
            requests.delete(f"{here.base}/remove-user/{user_id}", timeout=15)
            registered(here)  # another one of the same name

    assert (before, is_let_in(there, credential)) == (True, False)


def test_guesses_are_counted_for_all_processes_together(serve: Serve) -> None:
    here, there = serve(), serve()
    registered(here)

    answers = [logged_in(server, "wrong").status_code for server in [here, there] * 15]

    assert answers == [401] * 20 + [429] * 10


def test_a_refused_guess_says_when_to_come_again_and_does_not_end_what_is_open(serve: Serve) -> None:
    server = serve(MLAPI_LOGINS__PER_ADDRESS="3")
    registered(server)
    credential = token(server)

    answers = [logged_in(server, "wrong", username=f"nobody{number}") for number in range(4)]

    refused = answers[-1]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert refused.json() == {"message": "Too many attempts, try again later"}
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert is_let_in(server, credential)


@pytest.mark.parametrize("level", ["info", "trace"])
def test_nothing_that_lets_in_is_ever_logged(serve: Serve, level: str) -> None:
    server = serve("--log-level", level)
    user_id = registered(server)
    credential, key = token(server), api_key(server, user_id)
    for secret in (credential, key, credential[:-2]):
        requests.get(f"{server.base}/token_status/{secret}", timeout=15)
        requests.get(f"{server.base}/token_status//{secret}", timeout=15)
        requests.get(f"{server.base}/token_status/x/{secret}", timeout=15)
        requests.get(f"{server.base}/{secret}", timeout=15)
        requests.get(f"{server.base}/keys/{secret}/x", timeout=15)
        requests.get(f"{server.base}/health/live?token={secret}", timeout=15)
        requests.delete(f"{server.base}/keys/{secret}", timeout=15)
        is_let_in(server, secret)
    logged_in(server, "c4n4ry wrong")

    logged = server.log

    assert logged.count("redacted") >= 9
    for secret in (credential, key, key.rpartition("_")[2], credential.rpartition(".")[2], "c4n4ry", "token="):
        assert secret not in logged


# --- keys turn over


def mlapi(folder: Path, environ: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLAPI_")}
    return subprocess.Popen(
        [Path(sys.executable).with_name("mlapi"), *arguments],
        cwd=folder,
        env={**kept, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_keys_turn_over_under_log_ins_none_of_which_fails(
    serve: Serve, tmp_path: Path, environ: dict[str, str]
) -> None:
    servers = [serve(), serve()]
    for number in range(5):
        registered(servers[number % 2], f"user{number}")
    credential = logged_in(servers[0], username="user0").json()["token"]
    answers: list[int] = []
    done = threading.Event()

    def log_in(number: int) -> None:
        while not done.is_set():
            answers.append(logged_in(servers[len(answers) % 2], username=f"user{number}").status_code)

    def run(*arguments: str) -> str:
        process = mlapi(tmp_path, environ, *arguments)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return said

    with ThreadPoolExecutor(3) as pool:
        logging_in = [pool.submit(log_in, number) for number in range(3)]
        said = run("keys", "rotate")
        run("keys", "rotate", "--salt")
        run("keys", "rotate", "--tokens")
        time.sleep(1.5)
        still_valid = [is_let_in(server, credential) for server in servers]
        left = run("keys", "prune")
        time.sleep(1.5)
        ended = [is_let_in(server, credential) for server in servers]
        done.set()
        for each in logging_in:
            each.result()

    assert said.startswith("every password is stored under the newest key; ")
    assert still_valid == [True, True]
    assert left == "left salts: 2 users have not logged in since the newest was added\npruned\n"
    assert ended == [False, False]
    assert set(answers) == {200}
    assert len(answers) > 50
    assert [logged_in(servers[0], username=f"user{number}").status_code for number in range(5)] == [200] * 5


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_rotation_that_is_killed_is_ended_by_the_next_one(
    serve: Serve, tmp_path: Path, environ: dict[str, str]
) -> None:
    server = serve()
    registered(server)

    killed = mlapi(tmp_path, environ, "keys", "rotate")
    while "- " not in (tmp_path / "secrets.yml").read_text():
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    keys = (tmp_path / "secrets.yml").read_text().count("\n- ")
    between = logged_in(server).status_code
    again = mlapi(tmp_path, environ, "keys", "rotate")
    again.communicate(timeout=60)

    assert (keys, between, again.returncode) == (2, 200, 0)
    assert (tmp_path / "secrets.yml").read_text().count("\n- ") == 2
    assert mlapi(tmp_path, environ, "keys", "prune").communicate(timeout=60)[0] == "pruned\n"
    assert logged_in(server).status_code == 200
