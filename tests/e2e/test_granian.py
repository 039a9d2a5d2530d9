"""mlapi on Granian, with the command in docs/production.md."""

import json
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.e2e.server import ROOT, Server
from tests.waiting import wait_until

GRANIAN = Path(sys.executable).with_name("granian")
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}

pytestmark = pytest.mark.skipif(
    not GRANIAN.exists(), reason="not tested on Granian: install it from requirements-dev.lock"
)


class GranianServer(Server):
    """Runs the command in docs/production.md, on another port."""

    def _command(self) -> list[str]:
        text = (ROOT / "docs" / "production.md").read_text()
        (command,) = re.findall(r"^granian (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
        options = shlex.split(command.replace("\\\n", " ").replace("8001", str(self.port)))
        return [str(GRANIAN), *options]

    @property
    def workers(self) -> set[str]:
        """Process ids of all workers."""
        return set(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GranianServer]:
    """A service in local mode."""
    with GranianServer(tmp_path_factory.mktemp("granian")) as server:
        yield server


def test_three_endpoints_work_on_granian(server: GranianServer) -> None:
    created = requests.post(f"{server.base}/register-user", json=ADA, timeout=30)
    again = requests.post(f"{server.base}/register-user", json=ADA, timeout=30)
    user_id = created.json()["user_id"]
    disabled = requests.put(f"{server.base}/toggle-user-permission/{user_id}/0", timeout=30)
    removed = requests.delete(f"{server.base}/remove-user/{user_id}", timeout=30)

    assert (created.status_code, again.status_code, disabled.status_code) == (201, 409, 200)
    assert (removed.status_code, removed.json()) == (200, {"message": "User deleted successfully"})


def test_local_mode_rejects_proxies_on_granian(server: GranianServer) -> None:
    through_proxy = {"X-Forwarded-For": "203.0.113.9"}

    response = requests.get(f"{server.base}/users", headers=through_proxy, timeout=30)

    assert response.status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", 400),
        ("Content-Length: 1000000\r\n", 413),
        ("".join(f"X-{number}: 1\r\n" for number in range(150)), 431),
    ],
    ids=["two framings", "two lengths", "long body", "many headers"],
)
def test_granian_rejects_requests_like_mlapi_serve(server: GranianServer, headers: str, status: int) -> None:
    request = f"POST /token HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n0\r\n\r\n"

    assert server.send_raw(request.encode()).startswith(b"HTTP/1.1 %d " % status)


def test_credentials_are_not_logged_on_granian(server: GranianServer) -> None:
    requests.get(f"{server.base}/token_status/s3cr3t?token=s3cr3t", timeout=30)

    wait_until(lambda: "/token_status/redacted" in server.log)
    assert "s3cr3t" not in server.log


def test_running_request_ends_before_granian_stops(tmp_path: Path) -> None:
    body = json.dumps(ADA).encode()
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
    with GranianServer(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(f"POST /register-user HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")  # the application waits for the body

        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "Stopping worker" in server.log)
        connection.sendall(body)

        assert connection.recv(1000).startswith(b"HTTP/1.1 201 ")
        wait_until(lambda: not server.is_running, timeout_seconds=30)


def test_reload_replaces_the_workers_of_granian(tmp_path: Path) -> None:
    with GranianServer(tmp_path) as server:
        before = server.workers

        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: server.workers and server.workers.isdisjoint(before), timeout_seconds=30)

        wait_until(lambda: requests.get(f"{server.base}/health/ready", timeout=30).status_code == 200)


def test_granian_exits_if_the_application_does_not_start(tmp_path: Path) -> None:
    server = GranianServer(tmp_path, {"MLAPI_PROFILE": "production"})

    exit_code = server.run_until_exit()

    assert exit_code == 1
    assert "secrets.key is missing" in server.log
