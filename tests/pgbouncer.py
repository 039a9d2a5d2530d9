"""Run a real PgBouncer in front of the tests' PostgreSQL server. Also works as root."""

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

from tests.postgres_server import PASSWORD, PostgresServer, free_port
from tests.system_programs import require_program

START_TIMEOUT_SECONDS = 20
_CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/userlist.txt
admin_users = mlapi
pool_mode = {pool_mode}
"""


class PgBouncer:
    """A running pooler, with the defaults of its package except for the given options."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self.port = port

    def url(self, database_url: URL) -> URL:
        """Return the URL of a database through the pooler."""
        return database_url.set(port=self.port)

    def execute(self, command: str) -> list[tuple[object, ...]]:
        """Execute a command of the admin console, such as PAUSE."""
        with self.connect("pgbouncer") as connection:
            cursor = connection.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def connect(self, database: str) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="mlapi",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            prepare_threshold=None,
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                self.connect("pgbouncer").close()
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


@contextmanager
def running_pgbouncer(server: PostgresServer, *, pool_mode: str, **options: object) -> Iterator[PgBouncer]:
    """Yield a running pooler. Skip the test if PgBouncer is not installed.

    Args:
        server: the server behind it.
        pool_mode: ``session`` or ``transaction``.
        options: further options of the section ``pgbouncer``.
    """
    program = require_program("pgbouncer")
    with tempfile.TemporaryDirectory(prefix="mlapi-pgbouncer-") as name:
        folder, port = Path(name), free_port()
        configuration = _CONFIGURATION.format(server_port=server.port, port=port, folder=folder, pool_mode=pool_mode)
        lines = "".join(f"{option} = {value}\n" for option, value in options.items())
        (folder / "pgbouncer.ini").write_text(configuration + lines)
        quoted_password = PASSWORD.replace('"', '""')
        (folder / "userlist.txt").write_text(f'"mlapi" "{quoted_password}"\n', encoding="utf-8")
        command = [program, "--quiet", str(folder / "pgbouncer.ini")]
        if os.geteuid() == 0:  # it refuses to run as root
            account = pwd.getpwnam("nobody")
            for path in (folder, *folder.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
            command += ["--user", account.pw_name]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            pooler = PgBouncer(process, port)
            pooler.wait_until_ready()
            yield pooler
        finally:
            process.kill()
            process.wait()
