"""Run nginx, Caddy and HAProxy with the configurations in deploy/ that guard a model server, and send them requests."""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import requests

from tests.e2e.model_server import ModelServer
from tests.e2e.proxies import running_caddy, running_haproxy, running_nginx_config
from tests.e2e.server import ROOT, MlapiServer
from tests.postgres_server import free_port

ADMIN_TOKEN = "an-admin-token-for-tests-0123456789"
AS_ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
SETTINGS = {"MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN, "MLAPI_HTTP__TRUSTED_PROXIES": "127.0.0.1"}
TIMEOUT_SECONDS = 30

Replacements = Sequence[tuple[str, str]]
SHORT_TIMEOUTS = (("5s", "1s"),)
"""How long the proxies wait for mlapi."""


def read_config(name: str, mlapi_port: int, model_port: int, replacements: Replacements) -> str:
    """Return a file in deploy/ with other ports, other text, and without TLS."""
    config = re.sub(r" *ssl_certificate.*\n", "", (ROOT / "deploy" / name).read_text("utf-8"))
    ports = [(":8001", f":{mlapi_port}"), (":8000", f":{model_port}")]
    for old, new in (*ports, *replacements):
        assert old in config
        config = config.replace(old, new)
    return config


def deployed_nginx(
    folder: Path, mlapi_port: int, model_port: int, replacements: Replacements = ()
) -> AbstractContextManager[str]:
    port = free_port()
    listen = ("listen 443 ssl", f"listen 127.0.0.1:{port}")
    config = read_config("nginx.conf", mlapi_port, model_port, [listen, *replacements])
    return running_nginx_config(folder, config, port)


def deployed_caddy(
    folder: Path, mlapi_port: int, model_port: int, replacements: Replacements = ()
) -> AbstractContextManager[str]:
    port = free_port()
    site = ("model.example.com {", f"http://127.0.0.1:{port} {{")
    config = read_config("Caddyfile", mlapi_port, model_port, [site, *replacements])
    return running_caddy(folder, config.replace("{\n", "{\n\tadmin off\n", 1), port)


def deployed_haproxy(
    folder: Path, mlapi_port: int, model_port: int, replacements: Replacements = ()
) -> AbstractContextManager[str]:
    port, lua_port, script = free_port(), free_port(), folder / "mlapi.lua"
    folder.mkdir()
    script.write_text((ROOT / "deploy/haproxy.lua").read_text("utf-8").replace(":8010", f":{lua_port}"))
    bind = ("bind :443 ssl crt /etc/haproxy/model.example.com.pem", f"bind 127.0.0.1:{port}")
    account = ("    user haproxy\n    group haproxy\n", "")  # the tests may not run as root
    own = [account, (":8010", f":{lua_port}"), bind, ("/etc/haproxy/mlapi.lua", str(script))]
    return running_haproxy(folder, read_config("haproxy.cfg", mlapi_port, model_port, [*own, *replacements]), port)


PROXIES: dict[str, Callable[..., AbstractContextManager[str]]] = {
    "nginx": deployed_nginx,
    "Caddy": deployed_caddy,
    "HAProxy": deployed_haproxy,
}


@contextmanager
def all_proxies(
    folder: Path, mlapi_port: int, model_port: int, replacements: Replacements = SHORT_TIMEOUTS
) -> Iterator[list[str]]:
    """Run all proxies in front of one model server."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(deployed(folder / name, mlapi_port, model_port, replacements))
            for name, deployed in PROXIES.items()
        ]


@attrs.frozen
class Deployment:
    """A proxy that guards a model server."""

    base: str
    model: ModelServer

    def request(self, method: str, path: str, credential: str = "", **options: Any) -> requests.Response:
        headers = {**options.pop("headers", {}), **({"Authorization": f"Bearer {credential}"} if credential else {})}
        return requests.request(method, self.base + path, headers=headers, timeout=TIMEOUT_SECONDS, **options)

    def send_raw(self, lines: str) -> bytes:
        """Send a request with exactly these lines and a Host header, and return the response."""
        with self.connect(f"{lines}\nConnection: close") as connection:
            received = b""
            while data := connection.recv(65536):
                received += data
        return received

    def connect(self, lines: str) -> socket.socket:
        """Send a request with exactly these lines and a Host header. Return the connection."""
        host = self.base.removeprefix("http://")
        connection = socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), timeout=TIMEOUT_SECONDS)
        connection.sendall(f"{lines}\nHost: {host}\n\n".replace("\n", "\r\n").encode())
        return connection


@attrs.frozen
class Account:
    """A user of the service, with an API key."""

    id: int
    key: str


def register(service: MlapiServer, username: str) -> Account:
    body = {"username": username, "password": "difference engine", "email": "ada@example.com"}
    user_id = requests.post(f"{service.base}/register-user", json=body, timeout=TIMEOUT_SECONDS).json()["user_id"]
    keys = f"{service.base}/users/{user_id}/keys"
    response = requests.post(keys, json={"name": "test"}, headers=AS_ADMIN, timeout=TIMEOUT_SECONDS)
    return Account(user_id, response.json()["key"])


def update(service: MlapiServer, account: Account, **changes: str) -> None:
    path = f"/users/{account.id}"
    requests.patch(service.base + path, json=changes, headers=AS_ADMIN, timeout=TIMEOUT_SECONDS).raise_for_status()


def set_enabled(service: MlapiServer, account: Account, flag: int) -> None:
    path = f"/toggle-user-permission/{account.id}/{flag}"
    requests.put(service.base + path, headers=AS_ADMIN, timeout=TIMEOUT_SECONDS).raise_for_status()
