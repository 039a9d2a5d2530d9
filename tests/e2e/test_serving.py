"""How ``mlapi serve`` listens: several addresses, a Unix socket, inherited sockets, and a root path behind nginx."""

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.e2e.proxies import running_nginx
from tests.e2e.server import MlapiServer, Server
from tests.waiting import wait_until

ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
TRUST_UNIX = {"MLAPI_HTTP__TRUSTED_PROXIES": "unix"}


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection through a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=15)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(15)
        self.sock.connect(str(self.path))


def get_through(path: Path, target: str, **headers: str) -> tuple[int, str]:
    """Send a GET request through a Unix socket. Return the status and the body of the response."""
    connection = UnixConnection(path)
    connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


# --- addresses


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlapiServer]:
    """A service that listens on three addresses, two of them TCP, with two workers and a root path."""
    folder = tmp_path_factory.mktemp("serving")
    options = ("--host", "localhost", "--host", "127.0.0.1", "--host", "::1", "--uds", "mlapi.sock", "--workers", "2")
    with MlapiServer(folder, TRUST_UNIX, *options, "--root-path", "/um/", "--keep-alive", "7") as server:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=15)
        yield server


def test_all_addresses_serve_on_the_same_port(server: MlapiServer) -> None:
    hosts = ("127.0.0.1", "[::1]")

    statuses = [requests.get(f"http://{host}:{server.port}/users", timeout=15).status_code for host in hosts]

    assert statuses == [200, 200]
    assert get_through(server.folder / "mlapi.sock", "/health/ready")[0] == 200


def test_first_log_line_contains_the_address_of_the_console(server: MlapiServer) -> None:
    first, *others = server.log.splitlines()

    assert first.startswith("INFO:     mlapi ")
    assert first.rpartition(" ")[2] in {
        f"http://127.0.0.1:{server.port}/um/console",
        f"http://[::1]:{server.port}/um/console",
    }
    assert requests.get(first.rpartition(" ")[2], timeout=15).status_code == 200
    (listening,) = [line for line in others if "listening at" in line]
    assert f"unix:{server.folder}/mlapi.sock" in listening


def test_local_mode_grants_no_access_through_a_unix_socket(server: MlapiServer) -> None:
    path = server.folder / "mlapi.sock"

    statuses = [get_through(path, target)[0] for target in ("/users", "/um/users", "/console", "/metrics")]

    assert statuses == [403, 403, 403, 403]
    assert "Management through a Unix socket needs a token" in get_through(path, "/users")[1]


def test_access_log_contains_the_client_behind_a_unix_socket(server: MlapiServer) -> None:
    get_through(server.folder / "mlapi.sock", "/health/live?behind=proxy", X_Forwarded_For="203.0.113.7, 198.51.100.9")

    wait_until(lambda: '198.51.100.9:0 - "GET /um/health/live HTTP/1.1" 200' in server.log, timeout_seconds=30)


def test_restart_keeps_the_unix_socket(server: MlapiServer) -> None:
    path = server.folder / "mlapi.sock"
    before, workers = path.stat(), server.workers
    assert stat.S_IMODE(before.st_mode) == 0o666
    statuses = set()

    os.kill(server.pid, signal.SIGHUP)
    deadline = time.monotonic() + 60
    while server.workers & workers and time.monotonic() < deadline:
        statuses.add(get_through(path, "/health/live")[0])

    assert not server.workers & workers
    assert statuses == {200}
    assert path.stat().st_ino == before.st_ino


def test_idle_connection_stays_open_for_the_keep_alive_time(server: MlapiServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
        started = time.monotonic()
        rest = connection.recv(1)

    assert rest == b""
    assert 6.5 < time.monotonic() - started < 12


# --- the file of the Unix socket


def test_stale_unix_socket_is_replaced_and_drained_at_the_stop(tmp_path: Path) -> None:
    path = tmp_path / "mlapi.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with MlapiServer(tmp_path, {}, "--uds", str(path), "--uds-mode", "600", "--host", "127.0.0.1") as server:
        mode = stat.S_IMODE(path.stat().st_mode)
        connections = [UnixConnection(path) for _ in range(20)]
        for connection in connections:
            connection.connect()
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: not path.exists(), timeout_seconds=30)
        statuses = set()
        for connection in connections:
            connection.request("GET", "/health/live")
            statuses.add(connection.getresponse().status)
            connection.close()
        server.stop()

    assert (mode, statuses) == (0o600, {200})


# --- inherited sockets


def test_inherited_socket_keeps_listening_after_the_stop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = "http://{}:{}".format(*listener.getsockname())
        mlapi = str(Path(sys.executable).with_name("mlapi"))
        process = subprocess.Popen(
            [mlapi, "serve", "--fd", str(listener.fileno()), "--workers", "2"],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("MLAPI_")},
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        status = requests.get(f"{base}/users", timeout=60).status_code
        process.terminate()
        code = process.wait(60)
        # Its successor accepts the connections that clients have opened in the meantime.
        with socket.create_connection(listener.getsockname(), timeout=5), listener.accept()[0] as accepted:
            assert accepted.fileno() > 0

    assert (status, code) == (200, 0)


# --- behind nginx, under a path


@pytest.fixture(scope="module", params=[Server, MlapiServer], ids=["uvicorn", "mlapi serve"])
def proxied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server_type: type[Server] = request.param
    environ = {"MLAPI_SECRETS__ADMIN_TOKEN": "a" * 32, "MLAPI_HTTP__TRUSTED_PROXIES": "127.0.0.1"}
    with server_type(tmp_path_factory.mktemp("proxied"), environ, "--root-path", "/um") as server:
        yield server


@pytest.mark.parametrize("slash", ["/", ""], ids=["the proxy removes the prefix", "the proxy keeps the prefix"])
def test_service_works_under_a_path_behind_nginx(slash: str, proxied: Server, tmp_path: Path) -> None:
    location = f"""
        location /um/ {{
            proxy_pass http://127.0.0.1:{proxied.port}{slash};
            proxy_set_header X-Forwarded-For 203.0.113.50;
        }}"""
    with running_nginx(tmp_path / "nginx", location) as base, requests.Session() as browser:
        login_page = browser.get(f"{base}/um/", headers={"Accept": "text/html"}, timeout=15)
        origin = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
        page = browser.post(f"{base}/um/console/log-in", data={"token": "a" * 32}, headers=origin, timeout=15)
        style = page.text.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
        docs = browser.get(f"{base}/um/docs", timeout=15)
        script = docs.text.partition('<script defer src="')[2].partition('"')[0]
        assets = [browser.get(url, timeout=15).status_code for url in (base + style, f"{base}/um/{script}")]
        description = browser.get(f"{base}/um/openapi.json", timeout=15)
        registered = browser.post(f"{base}/um/register-user", json=ADA, timeout=15)

    assert login_page.url == f"{base}/um/console/log-in"
    assert (page.url, page.status_code) == (f"{base}/um/console", 200)
    assert {cookie.path for cookie in browser.cookies} == {"/um/console", "/um/docs", "/um/openapi.json"}
    assert assets == [200, 200]
    assert json.loads(description.text)["servers"][0]["url"] == "."
    assert registered.status_code in {201, 409}
    assert "203.0.113.50:0 - " in proxied.log


def test_nginx_has_no_admin_access_through_a_unix_socket(server: MlapiServer, tmp_path: Path) -> None:
    """The proxy adds no header that reveals it, uses HTTP/1.1, and sends ``Host: localhost``."""
    location = f"location / {{ proxy_pass http://unix:{server.folder}/mlapi.sock; }}"
    with running_nginx(tmp_path / "nginx", location) as base:
        live = requests.get(f"{base}/um/health/live", timeout=15).status_code
        statuses = [requests.get(f"{base}{path}", timeout=15).status_code for path in ("/um/users", "/um/console")]

    assert (live, statuses) == (200, [403, 403])
