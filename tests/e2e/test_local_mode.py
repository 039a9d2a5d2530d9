"""Local mode behind real proxies: only programs of the service's own user and of root manage users."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import requests

from tests.e2e.proxies import running_caddy, running_nginx, running_proxy
from tests.e2e.server import MlapiServer, Server
from tests.postgres_server import free_port
from tests.system_programs import require_program

OTHER_USER = 54321
ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="not tested with other users: only root can run programs as another user"
)

CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:{upstream} {{
        header_up -X-Forwarded-For
        header_up -X-Forwarded-Proto
        header_up -X-Forwarded-Host
        header_up -Via
        header_up Host 127.0.0.1:{upstream}
    }}
}}
"""


@pytest.fixture(scope="module", params=[Server, MlapiServer], ids=["uvicorn", "mlapi serve"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server_type: type[Server] = request.param
    with server_type(tmp_path_factory.mktemp("server")) as server:
        requests.post(f"{server.base}/register-user", json=ADA, timeout=15)
        yield server


@pytest.fixture
def public_path() -> Iterator[Path]:
    """Return a folder that other users can read. Unlike `tmp_path`, all its parents are public, too."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def management_statuses(base: str) -> list[int]:
    """Return the status of each kind of management request: API, page and form."""
    return [
        requests.get(f"{base}/users", timeout=15).status_code,
        requests.put(f"{base}/toggle-user-permission/1/1", timeout=15).status_code,
        requests.delete(f"{base}/remove-user/999", timeout=15).status_code,
        requests.get(f"{base}/console", timeout=15).status_code,
        requests.get(f"{base}/metrics", timeout=15).status_code,
    ]


def test_tutorial_runs_unchanged_for_the_same_user(server: Server) -> None:
    statuses = management_statuses(server.base)

    assert statuses == [200, 200, 404, 200, 200]
    assert "management: local mode, open to programs on this machine that run as " in server.log


@needs_root
def test_nginx_of_another_user_has_no_admin_access(server: Server, tmp_path: Path) -> None:
    location = f"location / {{ proxy_pass http://127.0.0.1:{server.port}; }}"

    with running_nginx(tmp_path / "nginx", location, user="daemon") as base:
        logged_in = requests.post(
            f"{base}/token", json={name: ADA[name] for name in ("username", "password")}, timeout=15
        )
        refused = requests.get(f"{base}/users", timeout=15)
        statuses = management_statuses(base)

    assert (logged_in.status_code, statuses) == (200, [403] * 5)
    assert refused.json()["message"].startswith("Management is open to programs that run as the same user")


@needs_root
def test_caddy_of_another_user_has_no_admin_access(server: Server, public_path: Path) -> None:
    port = free_port()
    config = CADDY.format(port=port, upstream=server.port)

    with running_caddy(public_path / "caddy", config, port, user=OTHER_USER) as base:
        statuses = management_statuses(base)

    assert statuses == [403] * 5


@needs_root
def test_tcp_forwarder_of_another_user_has_no_admin_access(server: Server, tmp_path: Path) -> None:
    port = free_port()
    listen, target = f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", f"TCP4:127.0.0.1:{server.port}"

    with running_proxy([require_program("socat"), listen, target], port, tmp_path / "socat", user=OTHER_USER) as base:
        response = requests.get(f"{base}/users", headers={"Host": f"127.0.0.1:{server.port}"}, timeout=15)

    assert response.status_code == 403


@needs_root
def test_every_connection_of_a_reused_port_is_checked(server: Server) -> None:
    local_port = free_port()
    request = f"GET /users HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n"
    statuses = []
    for user in (0, OTHER_USER, 0, OTHER_USER):
        target = f"TCP4:127.0.0.1:{server.port},bind=127.0.0.1,sourceport={local_port},reuseaddr,shut-none"
        sent = subprocess.run(
            [require_program("socat"), "-t", "10", "-", target],
            input=request.encode(),
            capture_output=True,
            cwd="/",
            user=user,
            timeout=30,
            check=True,
        )
        statuses.append(sent.stdout.split()[1])

    assert statuses == [b"200", b"403", b"200", b"403"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_serve_in_local_mode_listens_on_loopback_only(host: str, tmp_path: Path) -> None:
    server = MlapiServer(tmp_path, {}, "--host", host)

    code = server.run_until_exit()

    assert code == 3
    assert server.log == (
        f"mlapi: without an admin token, mlapi does not listen on {host}: to serve this machine only, leave out --host;"
        " otherwise, set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)\n"
    )


@pytest.mark.parametrize(
    "environ",
    [{"MLAPI_SECRETS__ADMIN_TOKEN": "a" * 32}, {"MLAPI_MANAGEMENT__LOCAL": "false"}],
    ids=["token", "locked"],
)
def test_other_modes_listen_on_every_address(environ: dict[str, str], tmp_path: Path) -> None:
    with MlapiServer(tmp_path, environ, "--host", "0.0.0.0") as server:
        status = requests.get(f"{server.base}/users", timeout=15).status_code

    assert status == {"MLAPI_SECRETS__ADMIN_TOKEN": 401, "MLAPI_MANAGEMENT__LOCAL": 403}[next(iter(environ))]
