"""PostgreSQL settings that could change what mlapi sees, from every source that a session takes them from."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import ConnectionInfo
from sqlalchemy import URL, Connection

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.application import secret_rotation
from mlapi.bootstrap import upgrade_database
from mlapi.config import load_settings
from mlapi.domain.errors import RepositoryUnavailableError, SearchUnavailableError
from mlapi.domain.users import UserId, UsernameKey
from mlapi.interruption import Interruption
from mlapi.testing.samples import registered
from tests.postgres_server import PostgresServer
from tests.session_scenario import COMMANDS, run_commands, run_service

HOSTILE_SETTINGS = {
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Pacific/Kiritimati",
    "client_encoding": "LATIN1",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "xmlbinary": "hex",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "client_min_messages": "error",
    "synchronous_commit": "off",
    "statement_timeout": "50",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "transaction_timeout": "300",  # PostgreSQL could not even start a session in 1 ms
    "idle_session_timeout": "2000",
    "plan_cache_mode": "force_generic_plan",
    "jit_above_cost": "0",
    "enable_indexscan": "off",
}
OTHER_VALUES = [
    ("DateStyle", "SQL, DMY"),
    ("DateStyle", "Postgres, MDY"),
    ("TimeZone", "America/St_Johns"),
    ("default_transaction_isolation", "repeatable read"),
    ("client_encoding", "SQL_ASCII"),
    ("statement_timeout", "1"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, postgres_url: URL, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with the settings in the environment."""
    monkeypatch.chdir(tmp_path)
    set_url(postgres_url, monkeypatch)
    monkeypatch.setenv("MLAPI_PASSWORDS__SCHEME", "fernet")  # fast
    monkeypatch.setattr(secret_rotation, "SETTLE_SECONDS", 0.0)
    return tmp_path


def set_url(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLAPI_DATABASE__URL", url.render_as_string(hide_password=False))


@contextmanager
def from_server(server: PostgresServer, _url: URL, settings: dict[str, str], _patch: object) -> Iterator[None]:
    try:
        for name, value in settings.items():
            server.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        server.reload()
        yield
    finally:
        with server.connect() as connection:
            connection.execute("SET statement_timeout = 0")
            connection.execute("ALTER SYSTEM RESET ALL")
        server.reload()


@contextmanager
def from_database(server: PostgresServer, url: URL, settings: dict[str, str], _patch: object) -> Iterator[None]:
    for name, value in settings.items():  # the fixture resets them
        server.execute(f"ALTER DATABASE {url.database} SET {name} = '{value}'")
    yield


@contextmanager
def from_role(server: PostgresServer, url: URL, settings: dict[str, str], _patch: object) -> Iterator[None]:
    try:
        for name, value in settings.items():
            server.execute(f"ALTER ROLE mlapi IN DATABASE {url.database} SET {name} = '{value}'")
        yield
    finally:
        server.execute(f"ALTER ROLE mlapi IN DATABASE {url.database} RESET ALL")


@contextmanager
def from_environment(
    _server: PostgresServer, _url: URL, settings: dict[str, str], patch: pytest.MonkeyPatch
) -> Iterator[None]:
    patch.setenv("PGOPTIONS", options(settings))
    patch.setenv("PGDATESTYLE", settings.get("DateStyle", "ISO"))
    patch.setenv("PGTZ", settings.get("TimeZone", "UTC"))
    patch.setenv("PGCLIENTENCODING", settings.get("client_encoding", "UTF8"))
    yield


@contextmanager
def from_service_file(
    _server: PostgresServer, url: URL, settings: dict[str, str], patch: pytest.MonkeyPatch
) -> Iterator[None]:
    path = Path("services.conf").absolute()
    path.write_text(f"[hostile]\noptions={options(settings)}\nclient_encoding=LATIN1\n", "utf-8")
    patch.setenv("PGSERVICEFILE", str(path))
    set_url(url.update_query_dict({"service": "hostile"}), patch)
    yield


@contextmanager
def from_url(_server: PostgresServer, url: URL, settings: dict[str, str], patch: pytest.MonkeyPatch) -> Iterator[None]:
    set_url(url.update_query_dict({"options": options(settings)}), patch)
    yield


def options(settings: dict[str, str]) -> str:
    return " ".join(f"-c {name}={value}".replace(", ", ",\\ ") for name, value in settings.items())


Source = Callable[[PostgresServer, URL, dict[str, str], pytest.MonkeyPatch], AbstractContextManager[None]]
SOURCES = [from_server, from_database, from_role, from_environment, from_service_file, from_url]


@pytest.mark.parametrize("source", SOURCES)
def test_results_do_not_depend_on_settings_from(
    source: Source, postgres: PostgresServer, postgres_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with source(postgres, postgres_url, HOSTILE_SETTINGS, monkeypatch):
        assert run_commands(tmp_path) == [(command, 0) for command in COMMANDS]
        run_service(load_settings())


@pytest.mark.parametrize(("name", "value"), [*HOSTILE_SETTINGS.items(), *OTHER_VALUES])
def test_results_do_not_depend_on_the_setting(
    name: str, value: str, postgres: PostgresServer, postgres_url: URL
) -> None:
    upgrade_database(load_settings())
    postgres.execute(f"ALTER DATABASE {postgres_url.database} SET {name} = '{value}'")

    run_service(load_settings())


# --- a session that serves several clients in turn


@pytest.fixture
def pooled(postgres_database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Return a database whose connections look like those of a connection pooler."""
    monkeypatch.setattr(ConnectionInfo, "backend_pid", 0)
    return postgres_database


def show(connection: Connection, *names: str) -> list[object]:
    return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]


def test_pooled_session_has_the_settings_only_in_transactions(pooled: Database) -> None:
    names = ("statement_timeout", "TimeZone", "lock_timeout")
    pooled.close()

    with pooled.reading() as connection:
        within = show(connection, *names)
        driver_connection: Any = connection.connection.driver_connection
    after = [driver_connection.execute(f"SHOW {name}").fetchone()[0] for name in names]

    assert within == ["4s", "UTC", "2s"]
    assert after[0] == after[2] == "0"


def test_pooled_session_prepares_no_statements(pooled: Database) -> None:
    pooled.close()
    repository = SqlUserRepository(pooled)

    for _ in range(10):
        repository.find_principals([UserId(1)])

    with pooled.reading() as connection:
        assert connection.exec_driver_sql("SELECT * FROM pg_prepared_statements").all() == []


@pytest.mark.parametrize(("configured", "used"), [("off", "on"), ("local", "local")])
def test_pooled_transaction_commits_to_disk(
    configured: str, used: str, pooled: Database, postgres: PostgresServer, postgres_url: URL
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_url.database} SET synchronous_commit = {configured}")
    pooled.close()

    with pooled.writing() as connection:
        assert show(connection, "synchronous_commit") == [used]


def test_interruption_ends_the_wait_for_a_pooled_statement(pooled: Database) -> None:
    pooled.close()
    interruption = Interruption(30.0)
    timer = threading.Timer(0.5, interruption.request)
    timer.start()
    started_at = time.monotonic()

    with pytest.raises(SearchUnavailableError):
        interruption.run(lambda: pooled.browse(lambda connection: connection.exec_driver_sql("SELECT pg_sleep(30)")))

    assert time.monotonic() - started_at < 15
    timer.join()


@pytest.mark.parametrize("time", ["infinity", "4000-01-01 BC"])
def test_time_outside_of_the_range_of_python_is_reported(postgres_url: URL, time: str) -> None:
    upgrade_database(load_settings())
    with Database(postgres_url) as database:
        repository = SqlUserRepository(database)
        registered(repository)
        with database.writing() as connection:
            connection.exec_driver_sql(f"UPDATE users SET created_datetime = '{time}'")

        with pytest.raises(RepositoryUnavailableError, match="a stored time is too early or too late"):
            repository.find_many([UsernameKey("ada")])
