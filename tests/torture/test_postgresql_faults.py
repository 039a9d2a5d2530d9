"""PostgreSQL faults under load: the service quickly responds with 503, loses nothing and recovers without a restart."""

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import psycopg
import pytest
import requests
from sqlalchemy import URL

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.domain.errors import ChangeRejectedError, RepositoryUnavailableError, UserExistsError
from mlapi.domain.rules import canonical_username
from mlapi.testing.samples import registration
from tests.e2e.server import MlapiServer
from tests.postgres_server import PostgresServer, running_postgres
from tests.torture.clients import new_user, stored_users
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.retrying_clients import RESPONSE_LIMIT_SECONDS, Load, load, serving

CLIENTS = 6
RECOVERY_LIMIT_SECONDS = 2.0
"""Maximum time from the end of a fault to the first successful change."""
MAY_BE_DONE = "Service unavailable, try again: this may have been done already"


@pytest.fixture(scope="module")
def service(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[URL, MlapiServer]]:
    """A database URL, and one service for all faults. The service is never restarted."""
    with postgres.new_database() as url, serving(url, tmp_path_factory.mktemp("service")) as server:
        yield url, server


@pytest.fixture
def url(service: tuple[URL, MlapiServer]) -> URL:
    return service[0]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A 32 MiB file system with a folder for PostgreSQL. Skips the test if mounting is not permitted."""
    with tempfile.TemporaryDirectory(prefix="mlapi-small-disk-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("not tested on a full disk: mounting a file system needs root")
        try:
            data = Path(folder) / "data"
            data.mkdir()
            shutil.chown(data, "nobody")
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


class FaultInjection:
    """Injects a fault several times while clients use the service, and checks the results."""

    def __init__(self, url: URL, server: MlapiServer, report: Report) -> None:
        self._url = url
        self._server = server
        self._report = report

    def __call__(self, name: str, fault: Callable[[Load], object], count: int) -> None:
        """Inject a fault.

        Args:
            name: description of the fault, and prefix of the usernames.
            fault: function that starts and ends the fault.
            count: how many times to inject it.
        """
        recovery_seconds = []
        with load(self._server.port, CLIENTS, name) as clients:
            for _ in range(count):
                fault(clients)
                recovery_seconds.append(clients.seconds_to_success())
                time.sleep(0.3)

        assert clients.errors == []
        assert {response.status for response in clients.responses} <= {200, 201, 409, 503}
        stored = {user: value for user, value in stored_users(self._url).items() if user.startswith(name)}
        assert stored == clients.users
        assert requests.get(f"{self._server.base}/health/ready", timeout=5).status_code == 200
        assert clients.slowest_seconds < RESPONSE_LIMIT_SECONDS
        assert max(recovery_seconds) < RECOVERY_LIMIT_SECONDS
        self._report(
            f"PostgreSQL, {name}, {count} times under {CLIENTS} clients: {len(clients.responses):,} requests,"
            f" {clients.unavailable:,} responses with 503, slowest response {clients.slowest_seconds:.1f} s, recovered"
            f" after {max(recovery_seconds):.2f} s at most, 0 of {len(clients.users):,} users lost or duplicated,"
            f" {clients.applied_despite_503} registrations applied despite a 503"
        )


@pytest.fixture
def inject(service: tuple[URL, MlapiServer], report: Report) -> FaultInjection:
    return FaultInjection(*service, report)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_service_reconnects_to_a_restarted_server(
    postgres: PostgresServer,
    service: tuple[URL, MlapiServer],
    inject: FaultInjection,
    short_or_full: ShortOrFull,
    signal_number: signal.Signals,
) -> None:
    base = service[1].base

    def restart(clients: Load) -> None:
        unavailable = clients.unavailable
        postgres.stop(signal_number)
        clients.wait_for(lambda: clients.unavailable > unavailable, 10, "503")
        states = [requests.get(f"{base}/health/{state}", timeout=10).status_code for state in ("live", "ready")]
        postgres.start()
        assert states == [200, 503]

    inject(f"restarted ({'fast' if signal_number is signal.SIGINT else 'immediate'})", restart, short_or_full(1, 10))


def test_terminated_sessions_are_reopened(
    postgres: PostgresServer, url: URL, inject: FaultInjection, short_or_full: ShortOrFull
) -> None:
    sessions = f"FROM pg_stat_activity WHERE datname = '{url.database}'"

    inject(
        "all sessions terminated",
        lambda _: postgres.execute(f"SELECT pg_terminate_backend(pid) {sessions}"),
        short_or_full(3, 100),
    )


def test_wait_for_a_locked_table_is_bounded(
    postgres: PostgresServer, url: URL, inject: FaultInjection, short_or_full: ShortOrFull
) -> None:
    seconds = short_or_full(3, 5)

    def lock(_: Load) -> None:
        with postgres.connect(url.database or "") as connection, connection.transaction():
            connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds)

    inject(f"table locked for {seconds} s", lock, short_or_full(1, 3))


def test_service_recovers_when_a_connection_becomes_free(
    postgres: PostgresServer, url: URL, inject: FaultInjection, short_or_full: ShortOrFull
) -> None:
    sessions = f"FROM pg_stat_activity WHERE datname = '{url.database}'"

    def use_all_connections(clients: Load) -> None:
        with ExitStack() as stack:
            own = stack.enter_context(postgres.connect())
            unavailable = clients.unavailable

            def take_free_connections() -> bool:
                with suppress(psycopg.OperationalError):
                    while True:
                        stack.enter_context(postgres.connect())
                own.execute(f"SELECT pg_terminate_backend(pid) {sessions}".encode())
                return clients.unavailable > unavailable + CLIENTS

            clients.wait_for(take_free_connections, 30, "503")

    inject("no connections left", use_all_connections, short_or_full(1, 10))


def test_service_recovers_when_the_server_is_writable_again(
    postgres: PostgresServer, inject: FaultInjection, short_or_full: ShortOrFull
) -> None:
    def make_read_only(clients: Load) -> None:
        with setting(postgres, "default_transaction_read_only", "on"):
            unavailable = clients.unavailable
            clients.wait_for(lambda: clients.unavailable > unavailable + CLIENTS, 10, "503")

    inject("read-only", make_read_only, short_or_full(1, 10))


def test_service_recovers_from_a_full_postgresql_disk(
    postgres: PostgresServer, small_disk: Path, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    ballast = small_disk / "ballast"

    def fill(clients: Load) -> None:
        with ballast.open("wb", buffering=0) as stream:
            for size in (65536, 4096):
                with suppress(OSError):
                    while True:
                        stream.write(bytes(size))
        unavailable = clients.unavailable
        clients.wait_for(lambda: clients.unavailable > unavailable + CLIENTS, 30, "503")
        ballast.unlink()

    postgres.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}/data'")
    postgres.execute("CREATE DATABASE on_small_disk TABLESPACE small")
    try:
        url = postgres.url("on_small_disk")
        with serving(url, tmp_path) as server:
            FaultInjection(url, server, report)("disk full", fill, short_or_full(1, 10))
    finally:
        postgres.execute("DROP DATABASE IF EXISTS on_small_disk WITH (FORCE)")
        postgres.execute("DROP TABLESPACE small")


def test_commit_without_a_standby_gets_a_timely_response(
    postgres: PostgresServer, inject: FaultInjection, short_or_full: ShortOrFull
) -> None:
    def lose_standby(clients: Load) -> None:
        with setting(postgres, "synchronous_standby_names", "away"):
            unavailable = clients.unavailable
            clients.wait_for(lambda: clients.unavailable > unavailable + short_or_full(0, 3 * CLIENTS), 60, "503")

    inject("no synchronous standby", lose_standby, short_or_full(1, 3))


# --- changes that are applied despite a 503


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator["CommitInterruptingProxy"]:
    with CommitInterruptingProxy(postgres.port) as running:
        yield running


def test_retry_after_a_lost_commit_response_finds_the_change(
    proxy: "CommitInterruptingProxy", postgres_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    rounds = short_or_full(2, 50)
    with serving(postgres_url.set(port=proxy.port), tmp_path) as server, requests.Session() as session:

        def send_twice(method: str, path: str, body: object = None) -> tuple[requests.Response, requests.Response]:
            """Send a request, break the database connection at its commit, then send the request again."""
            proxy.break_next_commit()
            first = session.request(method, server.base + path, json=body, timeout=15)
            return first, session.request(method, server.base + path, json=body, timeout=15)

        for number in range(rounds):
            name = f"user{number}"
            first, second = send_twice("POST", "/register-user", new_user(name))
            user_id, _ = stored_users(postgres_url)[name]

            assert (first.status_code, first.headers["Retry-After"], first.json()) == (
                503,
                "1",
                {"message": MAY_BE_DONE},
            )
            assert (second.status_code, second.json()) == (409, {"message": "User already exists", "user_id": user_id})

            first, second = send_twice("PUT", f"/toggle-user-permission/{user_id}/0")

            assert (first.status_code, first.json(), second.status_code) == (503, {"message": MAY_BE_DONE}, 200)
            assert stored_users(postgres_url) == {name: (user_id, False)}

            first, second = send_twice("DELETE", f"/remove-user/{user_id}")

            assert (first.status_code, first.json(), second.status_code) == (503, {"message": MAY_BE_DONE}, 404)
            assert stored_users(postgres_url) == {}

    report(
        f"PostgreSQL, connection broken after a commit and before its confirmation, {3 * rounds} times: 503 each time;"
        " a retry returns 409 with the id (register), 200 (toggle), 404 (remove)"
    )


def test_commit_on_a_lost_connection_may_have_been_applied(
    proxy: "CommitInterruptingProxy", postgres_database: Database, postgres_url: URL
) -> None:
    with Database(postgres_url.set(port=proxy.port)) as database:
        repository = SqlUserRepository(database)
        repository.check()
        proxy.break_next_commit()

        with pytest.raises(RepositoryUnavailableError) as raised:
            repository.apply([registration("ada")])

        assert raised.value == RepositoryUnavailableError("the connection was lost while committing", may_be_done=True)
        ada = repository.find(canonical_username("ada"))
        assert ada is not None
        assert repository.apply([registration("ada")]) == [UserExistsError(ada.id)]


def test_commit_rejected_by_the_server_is_not_applied(postgres_database: Database) -> None:
    with postgres_database.writing() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    repository = SqlUserRepository(postgres_database)

    assert repository.apply([registration("ada")]) == [
        ChangeRejectedError(None, "a trigger rejected the change (SQLSTATE P0001)")
    ]
    assert repository.find(canonical_username("ada")) is None


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("pg_cancel_backend", "the wait for a standby was canceled while committing"),
        ("pg_terminate_backend", "the connection was lost while committing"),
    ],
)
def test_change_is_unacknowledged_if_standby_wait_is_interrupted(
    postgres: PostgresServer, postgres_database: Database, end: str, reason: str
) -> None:
    repository = SqlUserRepository(postgres_database)

    with setting(postgres, "synchronous_standby_names", "away"), waiting_for_standby(postgres, repository) as failures:
        postgres.execute(f"SELECT {end}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

    name, error = failures[0]
    assert error == RepositoryUnavailableError(reason, may_be_done=True)
    user = repository.find(canonical_username(name))
    assert user is not None  # stored on this server, but perhaps not on a standby
    assert repository.apply([registration(name)]) == [UserExistsError(user.id)]


def test_users_are_readable_while_commits_wait_for_a_standby(
    postgres: PostgresServer, postgres_database: Database, postgres_url: URL
) -> None:
    with Database(postgres_url, timeout_seconds=0.1, max_connections=2) as database:
        repository = SqlUserRepository(database)
        (ada,) = repository.apply([registration("ada")])

        with (
            setting(postgres, "synchronous_standby_names", "away"),
            waiting_for_standby(postgres, repository),
        ):
            errors = [catch_unavailable(repository, "bob") for _ in range(3)]
            found = repository.find(canonical_username("ada"))
            postgres.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

        assert found == ada
        assert errors == [RepositoryUnavailableError("the database is busy: too many threads are writing")] * 3


# --- a hanging primary and its replacement


def test_connections_to_a_hanging_primary_are_dropped(postgres: PostgresServer) -> None:
    with running_postgres() as hanging, ExitStack() as databases:
        for server in (hanging, postgres):
            server.execute("CREATE DATABASE moved")
            upgrade(databases.enter_context(Database(server.url("moved"))))
        databases.callback(postgres.execute, "DROP DATABASE moved WITH (FORCE)")
        postgres.execute("ALTER DATABASE moved SET default_transaction_read_only = on")
        query = {
            "host": (f"127.0.0.1:{postgres.port}", f"127.0.0.1:{hanging.port}"),
            "target_session_attrs": "read-write",
            "connect_timeout": "2",
        }
        database = Database(
            hanging.url("moved").set(host=None, port=None, query=query), timeout_seconds=0.2, max_connections=2
        )
        repository = SqlUserRepository(databases.enter_context(database))
        idle_connections = [database.engine.raw_connection() for _ in range(2)]
        for connection in idle_connections:
            connection.close()

        with ThreadPoolExecutor(1) as pool:
            hanging.signal_all(signal.SIGSTOP)
            try:
                writing = pool.submit(catch_unavailable, repository, "ada", time.monotonic() + 0.1)
                postgres.execute("ALTER DATABASE moved RESET default_transaction_read_only")
                time.sleep(0.2)
                error = catch_unavailable(repository, "bob")
                stuck_error = writing.result(10)
                (eve,) = repository.apply([registration("eve")])
            finally:
                hanging.signal_all(signal.SIGCONT)

        assert error == RepositoryUnavailableError("the database is busy: too many threads are writing")
        assert stuck_error == RepositoryUnavailableError("too late to commit")
        assert stored_users(postgres.url("moved")) == {"eve": (eve.id, True)}  # type: ignore[union-attr]  # registered


# --- fault injection


def catch_unavailable(
    repository: SqlUserRepository, name: str, commit_by: float | None = None
) -> RepositoryUnavailableError:
    with pytest.raises(RepositoryUnavailableError) as raised:
        repository.apply([registration(name)], commit_by=commit_by)
    return raised.value


@contextmanager
def waiting_for_standby(
    postgres: PostgresServer, repository: SqlUserRepository
) -> Iterator[list[tuple[str, RepositoryUnavailableError]]]:
    """Register users until a commit waits for a standby; yield a list that will contain its username and error.

    The block must end the wait, for example by canceling the commit.
    """
    failures: list[tuple[str, RepositoryUnavailableError]] = []

    def register() -> None:
        for number in range(1_000):  # the server needs some time to apply the setting
            try:
                repository.apply([registration(f"user{number}")])
            except RepositoryUnavailableError as error:
                failures.append((f"user{number}", error))
                return

    committing = threading.Thread(target=register)
    committing.start()
    deadline = time.monotonic() + 30
    while not postgres.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"):
        assert time.monotonic() < deadline, "no commit waits for a standby"
        time.sleep(0.01)
    yield failures
    committing.join(10)


@contextmanager
def setting(postgres: PostgresServer, name: str, value: str) -> Iterator[None]:
    """Change a server-wide setting during the block, including in open sessions."""
    postgres.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    postgres.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        postgres.execute(f"ALTER SYSTEM RESET {name}")
        postgres.execute("SELECT pg_reload_conf()")


_COMMITTED = b"C\0\0\0\x0bCOMMIT\0"  # PostgreSQL 18, section 54.7: CommandComplete


class CommitInterruptingProxy:
    """A TCP proxy that can drop the response to a COMMIT and break the connection."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._break = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def break_next_commit(self) -> None:
        self._break.set()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._forward, args=ends))
                    self._threads[-1].start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with source:
            with suppress(OSError):
                while data := source.recv(65536):
                    if self._break.is_set() and _COMMITTED in data:
                        self._break.clear()
                        break  # drop the confirmation of the commit
                    target.sendall(data)
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
