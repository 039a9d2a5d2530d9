"""``mlapi serve`` in operation: logs without secrets, metrics for all workers, no version in headers."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mlapi.secret_store import new_key
from tests.e2e.server import MlapiServer, Server

PASSWORD = "c4n4ry-p4ssw0rd"
SALT = "c4n4ry-s4lt-of-the-house"
ADMIN_TOKEN = "c4n4ry-4dm1n-t0k3n-0123456789"
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
ADA = {"username": "ada", "password": PASSWORD, "email": "c4n4ry@example.com"}


def production_environ(folder: Path) -> dict[str, str]:
    return {
        "MLAPI_PROFILE": "production",
        "MLAPI_DATABASE__URL": f"sqlite:///{folder}/mlapi.db",
        "MLAPI_SECRETS__KEY": new_key(),
        "MLAPI_SECRETS__SALT": SALT,
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_PASSWORDS__SCHEME": "fernet",
    }


def parse_log(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def send_all_secrets(server: Server) -> list[str]:
    """Send every kind of secret to a server, in valid and invalid requests; return the secrets that it generated."""
    base = server.base
    requests.post(f"{base}/register-user", json=ADA, timeout=10)
    requests.post(f"{base}/register-user?password={PASSWORD}", json={**ADA, "password": [PASSWORD]}, timeout=10)
    requests.post(f"{base}/register-user", data=f'{{"password": "{PASSWORD}"', timeout=10)
    requests.post(f"{base}/token", json={"username": "ada", "password": PASSWORD + "x"}, timeout=10)
    token = requests.post(f"{base}/token", json={"username": "ada", "password": PASSWORD}, timeout=10).json()["token"]
    user_id = requests.get(f"{base}/users", headers=ADMIN, timeout=10).json()["users"][0]["user_id"]
    api_key = requests.post(f"{base}/users/{user_id}/keys", json={"name": "laptop"}, headers=ADMIN, timeout=10).json()
    for secret in (token, api_key["key"]):
        requests.get(f"{base}/token_status/{secret}", timeout=10)
        requests.get(f"{base}/nowhere/{secret}?key={secret}", timeout=10)
        requests.get(f"{base}/token_status", headers={"Authorization": f"Bearer {secret}"}, timeout=10)
    requests.get(f"{base}/users", headers={"Authorization": f"Bearer {ADMIN_TOKEN}x"}, timeout=10)
    requests.post(f"{base}/console/log-in", data={"token": ADMIN_TOKEN}, timeout=10)
    requests.get(f"{base}/audit?user_id={PASSWORD}", headers=ADMIN, timeout=10)
    return [token, api_key["key"]]


@pytest.mark.parametrize("kind", [MlapiServer, Server], ids=["mlapi serve", "uvicorn"])
def test_production_log_is_json_without_secrets(tmp_path: Path, kind: type[Server]) -> None:
    environ = production_environ(tmp_path)
    with kind(tmp_path, environ) as server:
        generated = send_all_secrets(server)
        response = requests.put(f"{server.base}/toggle-user-permission/1/0", headers=ADMIN, timeout=10)
    log = server.log

    lines = [line for line in log.splitlines() if line.startswith("{")]
    plain = [line for line in log.splitlines() if not line.startswith("{")]
    assert kind is Server or plain == []  # uvicorn writes some lines before it loads mlapi
    assert all(line.startswith("INFO:") for line in plain)
    access_lines = [line for line in parse_log("\n".join(lines)) if line["logger"] == "uvicorn.access"]
    assert access_lines[-1] | {"time": "", "client": "", "message": ""} == {
        "time": "",
        "level": "info",
        "logger": "uvicorn.access",
        "message": "",
        "request_id": response.headers["x-request-id"],
        "client": "",
        "method": "PUT",
        "path": "/toggle-user-permission/1/0",
        "status": 200,
    }
    for secret in (PASSWORD, SALT, ADMIN_TOKEN, environ["MLAPI_SECRETS__KEY"], ADA["email"], *generated):
        assert secret not in log


def test_every_worker_reports_the_metrics_of_all_workers(tmp_path: Path) -> None:
    with MlapiServer(tmp_path, {}, "--workers", "2") as server:
        deadline = time.monotonic() + 20
        while server.log.count("Application startup complete") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(40):
            requests.get(f"{server.base}/users/7", timeout=10)  # each on a new connection
        counts = {read_metric(server, "show_user", "404") for _ in range(10)}
        workers = set(re.findall(r"Started server process \[(\d+)\]", server.log))

    assert counts == {40.0}
    assert len(workers) == 2


def read_metric(server: Server, endpoint: str, status: str) -> float:
    text = requests.get(f"{server.base}/metrics", timeout=10).text
    (value,) = re.findall(rf'mlapi_requests_total{{endpoint="{endpoint}",method="GET",status="{status}"}} (.*)', text)
    return float(value)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlapiServer]:
    with MlapiServer(tmp_path_factory.mktemp("running")) as server:
        yield server


def test_responses_do_not_name_the_server_software(running: MlapiServer) -> None:
    response = running.send_raw(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    bad_request = running.send_raw(b"NONSENSE\r\n\r\n")

    assert b"200 OK" in response
    assert b"x-content-type-options: nosniff" in response
    for received in (response, bad_request):
        assert b"server:" not in received.lower()
        assert b"uvicorn" not in received.lower()


def test_request_in_flight_is_answered_before_shutdown(tmp_path: Path) -> None:
    with (
        MlapiServer(tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        body = json.dumps(ADA).encode()
        head = "POST /register-user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        time.sleep(0.3)
        assert server._process is not None
        server._process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(body[10:])
        response = connection.recv(65536)

    assert response.startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_startup_failure_logs_one_line_and_exits_with_3(tmp_path: Path, options: tuple[str, ...]) -> None:
    server = MlapiServer(tmp_path, {"MLAPI_SECRETS__KEY": "short"}, *options)

    code = server.run_until_exit()

    assert code == 3
    (line,) = server.log.splitlines()
    assert line.startswith("mlapi: secrets.key is not a Fernet key")


def test_startup_fails_if_the_address_is_in_use(running: MlapiServer, tmp_path: Path) -> None:
    second = MlapiServer(tmp_path)
    second.port = running.port

    assert second.run_until_exit() == 3
    assert "address already in use" in second.log
    assert "Traceback" not in second.log
