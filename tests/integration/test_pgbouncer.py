"""PostgreSQL behind a real PgBouncer, in session and transaction mode."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from psycopg import Connection
from sqlalchemy import URL

from mlapi import RepositoryUnavailableError, Users
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application import secret_rotation
from mlapi.bootstrap import open_service, open_users, upgrade_database
from mlapi.config import load_settings
from mlapi.domain.plans import Window
from mlapi.testing.allowances import granted, request_draw
from mlapi.testing.samples import registered
from tests.pgbouncer import PgBouncer, running_pgbouncer
from tests.postgres_server import PostgresServer
from tests.session_scenario import COMMANDS, run_commands, run_service
from tests.torture.crash_points import run

MAX_SECONDS = 10
MAX_COMMAND_SECONDS = 10  # without the time to start several interpreters at once, which is seconds on a busy machine
SESSION_STATE = """
    SELECT 'setting', name, setting FROM pg_settings
    UNION ALL SELECT 'prepared statement', name, statement FROM pg_prepared_statements
    UNION ALL SELECT 'cursor', name, statement FROM pg_cursors
    UNION ALL SELECT 'advisory lock', locktype, mode FROM pg_locks WHERE locktype = 'advisory'
    UNION ALL SELECT 'temporary table', relname, '' FROM pg_class WHERE relpersistence = 't'
    UNION ALL SELECT 'channel', channel, '' FROM pg_listening_channels() AS channel
    ORDER BY 1, 2, 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")  # fast
    monkeypatch.setattr(secret_rotation, "SETTLE_SECONDS", 0.0)
    return tmp_path


def set_url(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))


@pytest.fixture
def pooler(postgres: PostgresServer, postgres_url: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgBouncer]:
    """Run a pooler in transaction mode with a single server connection, and configure mlapi to use it."""
    with running_pgbouncer(postgres, pool_mode="transaction", default_pool_size=1, server_login_retry=1) as running:
        set_url(running.url(postgres_url), monkeypatch)
        yield running


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_everything_works_behind_pgbouncer_in_mode(
    pool_mode: str, postgres: PostgresServer, postgres_url: URL, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_pgbouncer(postgres, pool_mode=pool_mode) as running:
        set_url(running.url(postgres_url), monkeypatch)

        assert run_commands(folder) == [(command, 0) for command in COMMANDS]
        run_service(load_settings())


def test_draws_count_in_utc_behind_a_pooler(pooler: PgBouncer, postgres_url: URL) -> None:
    with pooler.connect(postgres_url.database or "") as neighbor:
        neighbor.execute(b"SET TimeZone = 'Asia/Tokyo'; SET synchronous_commit = off")
    with closing(SqlStorage(Database(pooler.url(postgres_url)))) as storage:
        storage.prepare(may_upgrade=True)
        draw = request_draw(registered(storage.users).id, 6, allowance="requests per day", window=Window.DAY)
        days = [Window.DAY.start_of(time.time())]

        results = [storage.allowances.draw([draw]) for _ in range(2)]

    days.append(Window.DAY.start_of(time.time()))
    assert [granted(drawn) for drawn in results] == [[6], [4]]
    assert {drawn.starts_at for each in results for drawn in each if drawn is not None} <= set(days)


@pytest.mark.parametrize("leaked", ["SET statement_timeout = 5", "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL'"])
def test_neighbors_in_the_same_pool_do_not_affect_each_other(
    leaked: str, pooler: PgBouncer, postgres_url: URL, folder: Path
) -> None:
    with pooler.connect(postgres_url.database or "") as neighbor:
        neighbor.execute(leaked.encode())
        neighbor.execute("SET synchronous_commit = off")
        before = session_state(neighbor)

        run_commands(folder)
        run_service(load_settings())

        assert session_state(neighbor) == before


def session_state(connection: Connection[tuple[object, ...]]) -> list[tuple[object, ...]]:
    with connection.transaction():
        timeout = connection.execute("SHOW statement_timeout").fetchall()
        connection.execute("SET LOCAL statement_timeout = 0")
        return timeout + connection.execute(SESSION_STATE).fetchall()


def use_service(users: Users, number: int) -> None:
    for round_number in range(5):
        user = users.register(username=f"{number}-{round_number}", password="p" * 12, email="a@example.com")
        users.set_enabled(user_id=user.id, enabled=False)
        users.remove(user_id=user.id)


def test_concurrent_clients_share_a_few_server_connections(pooler: PgBouncer, postgres_url: URL) -> None:
    upgrade_database(load_settings())
    with pooler.connect(postgres_url.database or "") as neighbor, open_users(load_settings()) as users:
        before = session_state(neighbor)
        threads = [threading.Thread(target=use_service, args=(users, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        states = []
        while any(thread.is_alive() for thread in threads):
            states.append(set(session_state(neighbor)) ^ set(before))
        for thread in threads:
            thread.join()

        assert users.count() == 0
        assert len([entry for entry in users.list_audit_page(limit=100) if entry.outcome == "done"]) == 60
        assert states
        assert [state for state in states if state] == []


# --- no free server connection


@contextmanager
def held_by_a_neighbor(pooler: PgBouncer, _server: PostgresServer, url: URL) -> Iterator[None]:
    with pooler.connect(url.database or "") as neighbor:
        neighbor.execute("BEGIN")
        yield
        neighbor.execute("ROLLBACK")


@contextmanager
def paused(pooler: PgBouncer, _server: PostgresServer, _url: URL) -> Iterator[None]:
    pooler.execute("PAUSE")
    try:
        yield
    finally:
        pooler.execute("RESUME")


@contextmanager
def hanging_pooler(pooler: PgBouncer, _server: PostgresServer, _url: URL) -> Iterator[None]:
    pooler.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        pooler.process.send_signal(signal.SIGCONT)


@contextmanager
def hanging_server(_pooler: PgBouncer, server: PostgresServer, _url: URL) -> Iterator[None]:
    server.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal_all(signal.SIGCONT)


@contextmanager
def stopped_server(_pooler: PgBouncer, server: PostgresServer, _url: URL) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


Outage = Callable[[PgBouncer, PostgresServer, URL], AbstractContextManager[None]]


@pytest.mark.parametrize("outage", [held_by_a_neighbor, paused, hanging_pooler, hanging_server, stopped_server])
def test_calls_end_in_time_and_recover_after(
    outage: Outage, pooler: PgBouncer, postgres: PostgresServer, postgres_url: URL
) -> None:
    settings = load_settings()
    upgrade_database(settings)
    with open_service(settings) as service:
        user = service.users.register(username="ada", password="difference engine", email="a@example.com")
        token = service.access.authenticator.log_in(username="ada", password="difference engine", address="::1").token
        calls: list[Callable[[], object]] = [
            lambda: service.users.set_enabled(user_id=user.id, enabled=True),
            lambda: service.users.list_page(limit=10),
            lambda: service.access.guard.check(token),
            lambda: upgrade_database(settings),
        ]

        with outage(pooler, postgres, postgres_url), ThreadPoolExecutor() as executor:
            durations, errors = zip(*executor.map(time_failure, calls), strict=True)

        assert max(durations) < MAX_SECONDS
        reasons = ["no free server connection", "the connection pooler cannot connect to the server"]
        assert all(any(reason in error for reason in reasons) for error in errors), errors
        wait_until_available(service.users)
        assert service.users.set_enabled(user_id=user.id, enabled=True).enabled


def time_failure(call: Callable[[], object]) -> tuple[float, str]:
    started_at = time.monotonic()
    with pytest.raises(RepositoryUnavailableError) as error_info:
        call()
    return time.monotonic() - started_at, str(error_info.value)


def wait_until_available(users: Users) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            users.repository.check()
        except RepositoryUnavailableError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError


def run_together(commands: list[list[str]], folder: Path) -> tuple[list[tuple[int, str]], float]:
    """Run commands of mlapi in separate processes at the same time.

    Returns:
        The exit code and the output of each command, and how long they took in seconds.
    """
    environ = {name: value for name, value in os.environ.items() if name.startswith("MLAPI_")}
    folders = [folder / str(number) for number in range(len(commands))]
    for each in folders:
        each.mkdir(exist_ok=True)
        (each / "users.csv").write_text("username,email,password\nada,ada@example.com,difference engine\n", "utf-8")
        shutil.copyfile(folder / "secrets.yml", each / "secrets.yml")
        (each / "secrets.yml").chmod(0o600)
    begin = time.monotonic()
    with ThreadPoolExecutor(len(commands)) as pool:
        codes = list(pool.map(lambda each, command: run(each, environ, command), folders, commands))
    seconds = time.monotonic() - begin
    return [(code, (each / "command.log").read_text()) for code, each in zip(codes, folders, strict=True)], seconds


def test_commands_end_in_time_without_a_free_server_connection(
    pooler: PgBouncer, postgres: PostgresServer, postgres_url: URL, folder: Path
) -> None:
    with open_service(load_settings()):
        pass  # creates the schema and the secrets
    commands = [["db", "upgrade"], ["users", "import", "users.csv"], ["users", "list"], ["doctor"]]
    _, start_seconds = run_together([[*command, "--help"] for command in commands], folder)

    with held_by_a_neighbor(pooler, postgres, postgres_url):
        results, seconds = run_together(commands, folder)

    assert [code for code, _ in results] == [3, 3, 3, 3]
    assert seconds < MAX_COMMAND_SECONDS + 3 * start_seconds
    for _, output in results:
        assert "a connection pooler may have no free server connection" in output


def test_full_pooler_is_named_in_the_error(
    postgres: PostgresServer, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_pgbouncer(postgres, pool_mode="transaction", max_client_conn=1) as running:
        set_url(running.url(postgres_url), monkeypatch)

        with (
            running.connect(postgres_url.database or ""),
            pytest.raises(RepositoryUnavailableError, match="a connection pooler has no free connection"),
        ):
            upgrade_database(load_settings())


def test_pooler_without_transactions_is_explained(
    postgres: PostgresServer, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_pgbouncer(postgres, pool_mode="statement") as running:
        set_url(running.url(postgres_url), monkeypatch)

        with pytest.raises(RepositoryUnavailableError, match="set its pool_mode to transaction or session"):
            upgrade_database(load_settings())


def test_startup_parameter_that_the_pooler_rejects_is_explained(
    pooler: PgBouncer, postgres_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_url(pooler.url(postgres_url).update_query_dict({"options": "-c search_path=mlapi"}), monkeypatch)

    with pytest.raises(RepositoryUnavailableError, match="remove `options` from"):
        upgrade_database(load_settings())
