"""Real proxies in front of the service: nginx, Caddy, HAProxy and programs like socat."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgres_server import free_port
from tests.system_programs import require_program

START_TIMEOUT_SECONDS = 30
_NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {config}
}}
"""
# The defaults of nginx 1.29.7: HTTP/1.1 to the upstream server, and no header that reveals the proxy.
_NGINX_SERVER = """
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
"""


@contextmanager
def running_proxy(command: list[str], port: int, folder: Path, *, user: int | None = None) -> Iterator[str]:
    """Run a proxy. Yield its base URL when it accepts connections.

    Args:
        command: the command line of the proxy.
        port: the port on which it listens.
        folder: a folder for its files. It is created if it is missing.
        user: the id of the user that runs it, by default the user of this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)  # the proxy may run as another user
    environ = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd="/", env=environ, stdout=log, stderr=log, user=user)
    try:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not _is_open(port):
            has_failed = process.poll() is not None or time.monotonic() > deadline
            assert not has_failed, (folder / "log").read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def running_nginx(folder: Path, locations: str, *, user: str = "root") -> Iterator[str]:
    """Run nginx with these locations. Yield its base URL. For the other arguments, see `running_nginx_config`."""
    port = free_port()
    config = _NGINX_SERVER.format(port=port, locations=locations)
    with running_nginx_config(folder, config, port, user=user) as base:
        yield base


@contextmanager
def running_nginx_config(folder: Path, config: str, port: int, *, user: str = "root") -> Iterator[str]:
    """Run nginx with this configuration. Yield its base URL.

    Args:
        folder: a new folder for the files of nginx.
        config: the directives of the ``http`` block.
        port: the port on which the configuration listens.
        user: the user of the workers of nginx if this process runs as root. Otherwise, they run as its own user.
    """
    program = require_program("nginx")
    folder.mkdir(parents=True)
    file = folder / "nginx.conf"
    user_line = f"user {user};" if os.geteuid() == 0 else ""
    file.write_text(_NGINX.format(folder=folder, user=user_line, config=config))
    with running_proxy([program, "-e", "stderr", "-c", str(file)], port, folder) as base:
        yield base


@contextmanager
def running_caddy(folder: Path, config: str, port: int, *, user: int | None = None) -> Iterator[str]:
    """Run Caddy with this Caddyfile. Yield its base URL. For the other arguments, see `running_proxy`."""
    program = require_program("caddy")
    folder.mkdir(parents=True)
    file = folder / "Caddyfile"
    file.write_text(config)
    command = [program, "run", "--config", str(file), "--adapter", "caddyfile"]
    with running_proxy(command, port, folder, user=user) as base:
        yield base


@contextmanager
def running_haproxy(folder: Path, config: str, port: int) -> Iterator[str]:
    """Run HAProxy with this configuration. Yield its base URL. For the other arguments, see `running_proxy`."""
    program = require_program("haproxy")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "haproxy.cfg"
    file.write_text(config)
    with running_proxy([program, "-f", str(file)], port, folder) as base:
        yield base


def _is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
