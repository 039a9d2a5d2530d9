"""Hardening in production: files, methods and headers that must not be exposed, and the log of rejected requests."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mlapi.secret_store import new_key
from tests.e2e.server import MlapiServer, Server

ADMIN_TOKEN = "an-admin-token-of-32-characters-"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A production server behind a local proxy, in a folder with files that must not be served."""
    folder = tmp_path_factory.mktemp("production")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")
    (folder / "config.yml").write_text("profile: production\nhttp: {trusted_proxies: [127.0.0.1]}\n")
    environ = {
        "MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db",
        "MLAPI_SECRETS__KEY": new_key(),
        "MLAPI_SECRETS__SALT": "a salt of this test",
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
    }
    with MlapiServer(folder, environ) as server:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=10)
        yield server


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "path",
    [
        *("/.git/config", "/.git/", "/.svn/entries", "/config.yml", "/mlapi.db", "/mlapi.db-wal", "/secrets.yml"),
        *("/docs/", "/console/static/", "/console/static/../../config.yml", "/static/", "/console/templates/"),
        *("/..%2f..%2fetc/passwd", "/%2e%2e/config.yml", "//config.yml", "/console/static/x/..%2f..%2fgate.py"),
        *("/debug", "/trace", "/actuator", "/.env", "/server-status"),
    ],
)
def test_files_and_directory_listings_are_not_served(server: Server, path: str) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nConnection: close\r\n\r\n"

    response = server.send_raw(f"GET {path} HTTP/1.1\r\n{head}".encode())

    assert (status_of(response), b"[core]" in response) in {(404, False), (303, False)}
    if status_of(response) == 303:  # the console redirects to its login page
        assert b"location: /console/log-in" in response.lower()


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT", "PROPFIND"])
@pytest.mark.parametrize("target", ["/token", "/health/live", "/console", "/users"])
def test_no_method_echoes_a_request(server: Server, method: str, target: str) -> None:
    head = f"Host: localhost\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nX-Canary: c4n4ry\r\nConnection: close\r\n\r\n"

    response = server.send_raw(f"{method} {target} HTTP/1.1\r\n{head}".encode())

    assert status_of(response) in {303, 400, 403, 405}
    assert b"c4n4ry" not in response
    assert ADMIN_TOKEN.encode() not in response


def test_every_response_has_content_type_and_nosniff(server: Server) -> None:
    log_in = requests.get(f"{server.base}/console/log-in", timeout=10)
    files = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', log_in.text)
    docs = requests.get(f"{server.base}/docs", headers=ADMIN, timeout=10)
    files += [f"/{name}" for name in re.findall(r'(?:href|src)="(docs/[^"]+)"', docs.text)]
    paths = ["/health/live", "/users", "/users/none", "/nowhere", "/openapi.json", "/metrics", *files]
    responses = [log_in, docs, *(requests.get(server.base + path, headers=ADMIN, timeout=10) for path in paths)]

    content_types = {
        (response.headers["content-type"], response.headers["x-content-type-options"]) for response in responses
    }

    assert len(files) == 6
    assert content_types == {
        ("application/json", "nosniff"),  # always UTF-8: RFC 8259, section 8.1
        ("text/css; charset=utf-8", "nosniff"),
        ("text/html; charset=utf-8", "nosniff"),
        ("text/javascript; charset=utf-8", "nosniff"),
        ("text/plain; version=0.0.4; charset=utf-8", "nosniff"),
    }


def test_api_calls_are_never_redirected(server: Server) -> None:
    paths = ["/token", "/token/", "/users", "/users/", "/register-user/", "/health/live/", "//users", "/users/me"]
    forwarded = {"X-Forwarded-Proto": "http", "X-Forwarded-Host": "elsewhere.example", "Host": "elsewhere.example"}

    responses = [
        requests.request(method, server.base + path, headers={**ADMIN, **forwarded}, timeout=10, allow_redirects=False)
        for path in paths
        for method in ("GET", "POST", "DELETE")
    ]

    assert [response.headers["location"] for response in responses if "location" in response.headers] == []
    assert {response.status_code // 100 for response in responses} == {2, 4}


def test_token_in_a_url_is_ignored_and_not_logged(server: Server) -> None:
    log_in = {"username": ADA["username"], "password": ADA["password"]}
    token = requests.post(f"{server.base}/token", json=log_in, timeout=10).json()["token"]

    in_path = requests.get(f"{server.base}/token_status/{token}", timeout=10)
    in_query = requests.get(f"{server.base}/token_status?token={token}", timeout=10)
    in_header = requests.get(f"{server.base}/token_status", headers={"Authorization": f"Bearer {token}"}, timeout=10)

    assert (in_path.status_code, in_query.status_code, in_header.status_code) == (404, 401, 200)
    assert find_log_lines(server, in_header.headers["x-request-id"])
    assert token not in server.log


def test_cookie_is_secure_behind_a_proxy_that_terminates_tls(server: Server) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Sec-Fetch-Site": "same-origin"}

    response = requests.post(
        f"{server.base}/console/log-in",
        data={"token": ADMIN_TOKEN},
        headers=headers,
        timeout=10,
        allow_redirects=False,
    )

    assert response.status_code == 303
    assert re.fullmatch(
        r"__Secure-mlapi_session=[\w.-]+; Path=/console; Max-Age=28800; HttpOnly; SameSite=Strict; Secure"
        r"(, __Secure-mlapi_docs=[\w.-]+; Path=/[\w.]+; Max-Age=28800; HttpOnly; SameSite=Strict; Secure){2}",
        response.headers["set-cookie"],
    )


def find_log_lines(server: Server, request_id: str) -> list[dict[str, Any]]:
    """Wait for the log lines of a request and return them."""
    deadline = time.monotonic() + 30
    while request_id not in server.log and time.monotonic() < deadline:
        time.sleep(0.02)
    lines = [json.loads(line) for line in server.log.splitlines()]
    return [line for line in lines if line.get("request_id") == request_id]


def test_rejected_requests_are_logged_with_their_source(server: Server) -> None:
    base, url = server.base, f"{server.base}/register-user"
    wrong = {"username": "ada", "password": "wrong"}
    responses = [
        requests.get(f"{base}/users", timeout=10),
        requests.get(f"{base}/token_status", headers={"Authorization": "Bearer forged"}, timeout=10),
        requests.post(f"{base}/token", json=wrong, timeout=10),
        requests.post(f"{base}/console/log-in", data={"token": ADMIN_TOKEN}, timeout=10),  # without a CSRF token
        requests.post(url, data="{", headers={"Content-Type": "application/json"}, timeout=10),
        requests.post(url, data="x" * 20_000, headers={"Content-Type": "application/json"}, timeout=10),
        requests.post(url, data="{}", headers={"Content-Type": "text/plain"}, timeout=10),
        requests.post(url, json={"username": "x"}, timeout=10),
        *(requests.post(f"{base}/token", json={**wrong, "username": "bob"}, timeout=10) for _ in range(21)),
    ]

    assert [response.status_code for response in responses[:8]] == [401, 401, 401, 403, 400, 413, 415, 422]
    assert responses[-1].status_code == 429
    for response in [*responses[:8], responses[-1]]:
        lines = find_log_lines(server, response.headers["x-request-id"])
        (line,) = [line for line in lines if line["logger"] == "uvicorn.access"]
        logged = {name: line[name] for name in ("method", "path", "status")}
        assert logged == {
            "method": response.request.method,
            "path": (response.request.url or "").removeprefix(base),
            "status": response.status_code,
        }
        assert line["client"].startswith("127.0.0.1:")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    messages = [line["message"] for line in find_log_lines(server, responses[2].headers["x-request-id"])]
    assert "login from 127.0.0.1: wrong password for user 1" in messages


def test_hostile_input_cannot_forge_log_lines(server: Server) -> None:
    odd = "/nowhere%0d%0a%7b%22level%22:%20%22critical%22%7d%1b[31m"

    response = requests.get(server.base + odd, headers={**ADMIN, "X-Request-Id": "a b\t{}"}, timeout=10)

    assert response.status_code == 404
    (line,) = find_log_lines(server, response.headers["x-request-id"])
    assert line["level"] == "info"
    assert {json.loads(one).get("level") for one in server.log.splitlines()} <= {"info", "warning"}
    assert "\x1b" not in server.log


def test_slow_characters_cost_little_time_on_the_event_loop(tmp_path: Path) -> None:
    """The limit is far above the real cost, and far below the 200 ms that it takes to normalize such a text."""
    slow_text = "a" + "\u0344" * 3_500 + "\u0316" * 3_500
    with MlapiServer(tmp_path, {"MLAPI_LOGINS__PER_NAME_AND_ADDRESS": "1"}) as server, requests.Session() as session:
        pids = server.workers
        login = {"username": slow_text, "password": slow_text[:10]}
        body = json.dumps(login, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "X-Forwarded-For": "," * 15_000}

        def send(count: int) -> set[int]:
            return {
                session.post(f"{server.base}/token", data=body, headers=headers, timeout=10).status_code
                for _ in range(count)
            }

        send(3)
        before = sum(map(main_thread_seconds, pids))
        statuses = send(50)
        seconds = (sum(map(main_thread_seconds, pids)) - before) / 50

    assert statuses == {429}
    assert seconds < 0.02


def main_thread_seconds(pid: int) -> float:
    """Return the processor time of a process's main thread, which runs the event loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9
