"""What goes wrong with PostgreSQL, under load: answered 503 in time, nothing lost, and back by itself."""

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

from mlapi.adapters.sql import Database, SqlUserRepository, upgrade
from mlapi.domain.errors import RepositoryUnavailableError, UserExistsError
from mlapi.domain.rules import canonical_username
from mlapi.testing.samples import registration
from tests.e2e.server import MlapiServer
from tests.postgres_server import PostgresServer, running_postgres
from tests.torture.clients import new_user, stored_users
from tests.torture.patient_clients import ANSWERED_WITHIN, Load, load, serving

CLIENTS = 6
BACK_WITHIN = 2.0
"""Seconds from the end of a fault to the first change that is made."""
MAY_BE_DONE = "Service unavailable, try again: this may have been done already"

Times = Callable[[int, int], int]
Tell = Callable[[str], None]


@pytest.fixture(scope="module")
def service(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[URL, MlapiServer]]:
    """One service that suffers all of the faults without a restart, and its database."""
    with postgres.new_database() as url, serving(url, tmp_path_factory.mktemp("service")) as server:
        yield url, server


@pytest.fixture
def url(service: tuple[URL, MlapiServer]) -> URL:
    return service[0]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 32 MiB with a folder that PostgreSQL may use, if the test may mount one."""
    with tempfile.TemporaryDirectory(prefix="mlapi-small-disk-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as somebody else
        mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("no disk was filled: that takes a root who may mount one")
        try:
            data = Path(folder) / "data"
            data.mkdir()
            shutil.chown(data, "nobody")
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


class Suffering:
    """A service under load that suffers a fault some times, with a look at what became of it."""

    def __init__(self, url: URL, server: MlapiServer, tell: Tell) -> None:
        self._url = url
        self._server = server
        self._tell = tell

    def __call__(self, name: str, fault: Callable[[Load], object], count: int) -> None:
        """``fault`` begins and ends it. ``name`` says what it is."""
        backs = []
        with load(self._server.port, CLIENTS, name) as clients:
            for _ in range(count):
                fault(clients)
                backs.append(clients.seconds_to_success())
                time.sleep(0.3)

        assert clients.wrong == []
        assert {answer.status for answer in clients.answers} <= {200, 201, 409, 503}
        stored = {user: value for user, value in stored_users(self._url).items() if user.startswith(name)}
        assert stored == clients.users
        assert requests.get(f"{self._server.base}/health/ready", timeout=5).status_code == 200
        assert clients.slowest < ANSWERED_WITHIN
        assert max(backs) < BACK_WITHIN
        self._tell(
            f"PostgreSQL, {name}, {count} times under {CLIENTS} clients: {len(clients.answers):,} requests,"
            f" {clients.refused:,} answered 503, the slowest answer after {clients.slowest:.1f} s, the first success"
            f" {max(backs):.2f} s after its end at most, 0 of {len(clients.users):,} users lost or twice,"
            f" {clients.done_unseen} registrations found done when asked for again"
        )


@pytest.fixture
def suffer(service: tuple[URL, MlapiServer], tell: Tell) -> Suffering:
    return Suffering(*service, tell)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_a_restarted_server_is_found_again(
    postgres: PostgresServer,
    service: tuple[URL, MlapiServer],
    suffer: Suffering,
    times: Times,
    how: signal.Signals,
) -> None:
    base = service[1].base

    def restart(clients: Load) -> None:
        refused = clients.refused
        postgres.stop(how)
        clients.wait_for(lambda: clients.refused > refused, 10, "503")
        states = [requests.get(f"{base}/health/{state}", timeout=10).status_code for state in ("live", "ready")]
        postgres.start()
        assert states == [200, 503]

    suffer(f"restarted ({'fast' if how is signal.SIGINT else 'immediate'})", restart, times(1, 10))


def test_sessions_that_are_terminated_are_opened_anew(
    postgres: PostgresServer, url: URL, suffer: Suffering, times: Times
) -> None:
    ours = f"FROM pg_stat_activity WHERE datname = '{url.database}'"

    suffer(
        "all sessions terminated",
        lambda _: postgres.execute(f"SELECT pg_terminate_backend(pid) {ours}"),
        times(3, 100),
    )


def test_a_locked_table_is_waited_for_and_no_longer_than_said(
    postgres: PostgresServer, url: URL, suffer: Suffering, times: Times
) -> None:
    seconds = times(3, 5)

    def lock(_: Load) -> None:
        with postgres.connect(url.database or "") as connection, connection.transaction():
            connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds)

    suffer(f"the table locked for {seconds} s", lock, times(1, 3))


def test_a_server_whose_connections_others_have_taken_is_used_when_one_is_free(
    postgres: PostgresServer, url: URL, suffer: Suffering, times: Times
) -> None:
    ours = f"FROM pg_stat_activity WHERE datname = '{url.database}'"

    def take_all(clients: Load) -> None:
        with ExitStack() as taken:
            own = taken.enter_context(postgres.connect())
            refused = clients.refused

            def squeeze() -> bool:
                with suppress(psycopg.OperationalError):
                    while True:
                        taken.enter_context(postgres.connect())
                own.execute(f"SELECT pg_terminate_backend(pid) {ours}".encode())
                return clients.refused > refused + CLIENTS

            clients.wait_for(squeeze, 30, "503")

    suffer("no connection left", take_all, times(1, 10))


def test_a_server_that_is_read_only_for_a_while_is_written_to_again(
    postgres: PostgresServer, suffer: Suffering, times: Times
) -> None:
    def make_read_only(clients: Load) -> None:
        with setting(postgres, "default_transaction_read_only", "on"):
            refused = clients.refused
            clients.wait_for(lambda: clients.refused > refused + CLIENTS, 10, "503")

    suffer("read-only", make_read_only, times(1, 10))


def test_a_server_whose_disk_is_full_is_written_to_again_when_there_is_room(
    postgres: PostgresServer, small_disk: Path, tmp_path: Path, times: Times, tell: Tell
) -> None:
    ballast = small_disk / "ballast"

    def fill(clients: Load) -> None:
        with ballast.open("wb", buffering=0) as stream:
            for size in (65536, 4096):
                with suppress(OSError):
                    while True:
                        stream.write(bytes(size))
        refused = clients.refused
        clients.wait_for(lambda: clients.refused > refused + CLIENTS, 30, "503")
        ballast.unlink()

    postgres.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}/data'")
    postgres.execute("CREATE DATABASE on_small_disk TABLESPACE small")
    try:
        url = postgres.url("on_small_disk")
        with serving(url, tmp_path) as server:
            Suffering(url, server, tell)("no room on its disk", fill, times(1, 10))
    finally:
        postgres.execute("DROP DATABASE IF EXISTS on_small_disk WITH (FORCE)")
        postgres.execute("DROP TABLESPACE small")


def test_changes_whose_commit_waits_for_a_standby_are_answered_for_and_may_be_there_later(
    postgres: PostgresServer, suffer: Suffering, times: Times
) -> None:
    def lose_standby(clients: Load) -> None:
        with setting(postgres, "synchronous_standby_names", "away"):
            refused = clients.refused
            clients.wait_for(lambda: clients.refused > refused + times(0, 3 * CLIENTS), 60, "503")

    suffer("no standby to commit to", lose_standby, times(1, 3))


# --- what was answered 503 and is done all the same


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator["CommitCutter"]:
    with CommitCutter(postgres.port) as cutter:
        yield cutter


def test_what_was_committed_before_the_connection_broke_is_found_done_when_asked_for_again(
    proxy: "CommitCutter", postgres_url: URL, tmp_path: Path, times: Times, tell: Tell
) -> None:
    rounds = times(2, 50)
    with serving(postgres_url.set(port=proxy.port), tmp_path) as server, requests.Session() as session:

        def twice(method: str, path: str, body: object = None) -> tuple[requests.Response, requests.Response]:
            """Ask for the same with the connection cut at its commit, and again."""
            proxy.cut_next_commit()
            first = session.request(method, server.base + path, json=body, timeout=15)
            return first, session.request(method, server.base + path, json=body, timeout=15)

        for number in range(rounds):
            name = f"user{number}"
            cut, again = twice("POST", "/register-user", new_user(name))
            user_id, _ = stored_users(postgres_url)[name]

            assert (cut.status_code, cut.headers["Retry-After"], cut.json()) == (503, "1", {"message": MAY_BE_DONE})
            assert (again.status_code, again.json()) == (409, {"message": "User already exists", "user_id": user_id})

            cut, again = twice("PUT", f"/toggle-user-permission/{user_id}/0")

            assert (cut.status_code, cut.json(), again.status_code) == (503, {"message": MAY_BE_DONE}, 200)
            assert stored_users(postgres_url) == {name: (user_id, False)}

            cut, again = twice("DELETE", f"/remove-user/{user_id}")

            assert (cut.status_code, cut.json(), again.status_code) == (503, {"message": MAY_BE_DONE}, 404)
            assert stored_users(postgres_url) == {}

    tell(
        f"PostgreSQL, the connection cut between a commit and its answer, {3 * rounds} times: 503 each time, and asked"
        " again 409 with the id (register), 200 (toggle), 404 (remove)"
    )


def test_a_connection_that_broke_while_committing_leaves_open_what_is_done(
    proxy: "CommitCutter", postgres_database: Database, postgres_url: URL
) -> None:
    with Database(postgres_url.set(port=proxy.port)) as database:
        repository = SqlUserRepository(database)
        repository.check()
        proxy.cut_next_commit()

        with pytest.raises(RepositoryUnavailableError) as raised:
            repository.apply([registration("ada")])

        assert raised.value == RepositoryUnavailableError("the connection was lost while committing", may_be_done=True)
        ada = repository.find(canonical_username("ada"))
        assert ada is not None
        assert repository.apply([registration("ada")]) == [UserExistsError(ada.id)]


def test_a_commit_that_the_server_refuses_is_not_done(postgres_database: Database) -> None:
    with postgres_database.writing() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
            "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    repository = SqlUserRepository(postgres_database)

    with pytest.raises(RepositoryUnavailableError) as raised:
        repository.apply([registration("ada")])

    assert raised.value == RepositoryUnavailableError("RaiseException: no")
    assert repository.find(canonical_username("ada")) is None


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("pg_cancel_backend", "the wait for a standby was cancelled while committing"),
        ("pg_terminate_backend", "the connection was lost while committing"),
    ],
)
def test_a_commit_whose_wait_for_a_standby_is_ended_is_not_acknowledged(
    postgres: PostgresServer, postgres_database: Database, end: str, reason: str
) -> None:
    repository = SqlUserRepository(postgres_database)

    with setting(postgres, "synchronous_standby_names", "away"), waiting_for_standby(postgres, repository) as refusal:
        postgres.execute(f"SELECT {end}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

    name, error = refusal[0]
    assert error == RepositoryUnavailableError(reason, may_be_done=True)
    user = repository.find(canonical_username(name))
    assert user is not None  # here; whether a standby has it too nobody knows
    assert repository.apply([registration(name)]) == [UserExistsError(user.id)]


def test_users_are_read_while_every_commit_waits_for_a_standby(
    postgres: PostgresServer, postgres_database: Database, postgres_url: URL
) -> None:
    with Database(postgres_url, timeout_seconds=0.1, max_connections=2) as database:
        repository = SqlUserRepository(database)
        (ada,) = repository.apply([registration("ada")])

        with (
            setting(postgres, "synchronous_standby_names", "away"),
            waiting_for_standby(postgres, repository),
        ):
            refusals = [refusal_of(repository, "bob") for _ in range(3)]
            found = repository.find(canonical_username("ada"))
            postgres.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

        assert found == ada
        assert refusals == [RepositoryUnavailableError("the database is busy: too many threads are writing")] * 3


# --- a primary that hangs while another takes its place


def test_connections_to_a_primary_that_hangs_are_left_when_there_is_another(postgres: PostgresServer) -> None:
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
        idle = [database.engine.raw_connection() for _ in range(2)]
        for connection in idle:
            connection.close()

        with ThreadPoolExecutor(1) as pool:
            hanging.signal_all(signal.SIGSTOP)
            try:
                writing = pool.submit(refusal_of, repository, "ada", time.monotonic() + 0.1)
                postgres.execute("ALTER DATABASE moved RESET default_transaction_read_only")
                time.sleep(0.2)
                refused = refusal_of(repository, "bob")
                stuck = writing.result(10)
                (eve,) = repository.apply([registration("eve")])
            finally:
                hanging.signal_all(signal.SIGCONT)

        assert refused == RepositoryUnavailableError("the database is busy: too many threads are writing")
        assert stuck == RepositoryUnavailableError("too late to commit")
        assert stored_users(postgres.url("moved")) == {"eve": (eve.id, True)}  # type: ignore[union-attr]  # registered


# --- the faults


def refusal_of(repository: SqlUserRepository, name: str, commit_by: float | None = None) -> RepositoryUnavailableError:
    with pytest.raises(RepositoryUnavailableError) as raised:
        repository.apply([registration(name)], commit_by=commit_by)
    return raised.value


@contextmanager
def waiting_for_standby(
    postgres: PostgresServer, repository: SqlUserRepository
) -> Iterator[list[tuple[str, RepositoryUnavailableError]]]:
    """Register users until a commit waits for a standby, which somebody must end; yield what becomes of it then."""
    refused: list[tuple[str, RepositoryUnavailableError]] = []

    def register() -> None:
        for number in range(1_000):  # the server needs some time to notice that it has a standby to wait for
            try:
                repository.apply([registration(f"user{number}")])
            except RepositoryUnavailableError as error:
                refused.append((f"user{number}", error))
                return

    committing = threading.Thread(target=register)
    committing.start()
    until = time.monotonic() + 10
    while not postgres.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"):
        assert time.monotonic() < until, "no commit waits"
        time.sleep(0.01)
    yield refused
    committing.join(10)


@contextmanager
def setting(postgres: PostgresServer, name: str, value: str) -> Iterator[None]:
    """A setting of the whole server, for sessions that are open too."""
    postgres.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    postgres.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        postgres.execute(f"ALTER SYSTEM RESET {name}")
        postgres.execute("SELECT pg_reload_conf()")


class CommitCutter:
    """A way to the server that can swallow the answer to a commit, and break the connection instead."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._cut = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)

    def cut_next_commit(self) -> None:
        self._cut.set()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                cutting = threading.Event()
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._carry, args=(*ends, cutting, ends[0] is client)))
                    self._threads[-1].start()

    def _carry(
        self, source: socket.socket, target: socket.socket, cutting: threading.Event, is_from_client: bool
    ) -> None:
        with source:
            with suppress(OSError):
                while received := source.recv(65536):
                    if is_from_client and self._cut.is_set() and received.startswith(b"Q") and b"COMMIT\0" in received:
                        self._cut.clear()
                        cutting.set()
                    elif not is_from_client and cutting.is_set():
                        break  # this says that it is done
                    target.sendall(received)
            with suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
