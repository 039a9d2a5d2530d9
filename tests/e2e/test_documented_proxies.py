"""The configurations of nginx and Caddy in docs/proxy.md work as shown, apart from their ports and TLS."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.e2e.proxies import running_caddy, running_nginx_config
from tests.e2e.server import ROOT, MlapiServer
from tests.postgres_server import free_port

ADMIN_TOKEN = "an-admin-token-for-tests-0123456789"
SETTINGS = {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN, "MLAPI_HTTP__TRUSTED_PROXIES": "127.0.0.1,unix"}
FORGED = {"X-Forwarded-For": "203.0.113.66", "X-Request-Id": "forged"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlapiServer]:
    """A service that listens on a port and on a Unix socket."""
    options = ("--host", "127.0.0.1", "--uds", "mlapi.sock")
    with MlapiServer(tmp_path_factory.mktemp("server"), SETTINGS, *options) as server:
        yield server


def read_blocks(first_word: str) -> list[str]:
    """Return the code blocks in the page about proxies that begin with this word."""
    page = (ROOT / "docs/proxy.md").read_text("utf-8")
    return [block for block in re.findall(r"```\w*\n(.*?)```", page, re.DOTALL) if block.startswith(first_word)]


@contextmanager
def documented_nginx(server: MlapiServer, folder: Path, *, socket: bool) -> Iterator[str]:
    """Run nginx with the documented configuration, but without TLS. Yield its base URL."""
    (config,) = read_blocks("limit_req_zone")
    (socket_upstream,) = read_blocks("upstream")
    if socket:
        config = re.sub(r"upstream mlapi \{.*?\n\}\n", socket_upstream, config, flags=re.DOTALL)
    port = free_port()
    config = re.sub(r"ssl_certificate.*\n", "", config).replace("443 ssl", f"127.0.0.1:{port}")
    config = config.replace(":8001;", f":{server.port};").replace("/run/mlapi", str(server.folder))
    with running_nginx_config(folder, config, port) as base:
        yield base


@contextmanager
def documented_caddy(server: MlapiServer, folder: Path) -> Iterator[str]:
    """Run Caddy with the documented configuration, but without TLS. Yield its base URL."""
    (config,) = read_blocks("users.example.com")
    port = free_port()
    config = config.replace("users.example.com", f"http://127.0.0.1:{port}").replace(":8001", f":{server.port}")
    with running_caddy(folder, f"{{\n\tadmin off\n}}\n{config}", port) as base:
        yield base


@pytest.mark.parametrize("proxy", ["nginx", "nginx through a Unix socket", "Caddy"])
def test_documented_proxy_configuration_works(proxy: str, server: MlapiServer, tmp_path: Path) -> None:
    folder = tmp_path / "proxy"
    running_proxy = (
        documented_caddy(server, folder)
        if proxy == "Caddy"
        else documented_nginx(server, folder, socket=proxy.endswith("socket"))
    )
    with running_proxy as base, requests.Session() as browser:
        ready = browser.get(f"{base}/health/ready", headers=FORGED, timeout=15)
        anonymous = browser.get(f"{base}/users", timeout=15).status_code
        origin = {"Origin": base, "Sec-Fetch-Site": "same-origin"}
        page = browser.post(f"{base}/console/log-in", data={"token": ADMIN_TOKEN}, headers=origin, timeout=15)
        docs = browser.get(f"{base}/docs", timeout=15)

    request_id = ready.headers["X-Request-Id"]
    assert (ready.status_code, ready.json()) == (200, {"message": "Ready"})
    assert "max-age" in ready.headers["Strict-Transport-Security"]
    assert (anonymous, page.url, docs.status_code) == (401, f"{base}/console", 200)
    assert request_id != FORGED["X-Request-Id"]
    (line,) = [line for line in server.log.splitlines() if request_id in line]
    assert '127.0.0.1:0 - "GET /health/ready HTTP/1.1" 200' in line


def test_documented_limit_stops_a_flood_of_registrations(server: MlapiServer, tmp_path: Path) -> None:
    with documented_nginx(server, tmp_path / "nginx", socket=False) as base:
        statuses = [requests.post(f"{base}/register-user", json={}, timeout=15).status_code for _ in range(23)]

    assert (statuses[0], statuses[-1]) == (422, 429)
