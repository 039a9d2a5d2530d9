"""Tests of `Database`: its URLs, settings and transactions, and the errors that it raises."""

import signal
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, event, literal, select, text

from mlapi import Command, ConfigurationError, Outcome, RepositoryUnavailableError, User, UserExistsError, UserId
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqliteUserRepository, SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.tables import UtcDateTime
from mlapi.adapters.sql.urls import connection_url, database_url
from mlapi.domain.commands import Remove, SetEnabled
from mlapi.domain.credentials import ApiKeyPrincipal
from mlapi.testing.samples import (
    LATER,
    apply_one,
    registered,
    registration,
    rejections,
    with_api_key,
)
from tests.postgres_server import PASSWORD, PostgresServer
from tests.torture.slow_database import SlowProxy

OpenDatabase = Callable[[URL], Database]

# --- URLs


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("sqlite:///mlapi.db", "sqlite"),
        ("sqlite+pysqlite:///mlapi.db", "sqlite"),
        ("postgresql://u:p@h:5432/d", "postgresql+psycopg"),
        ("postgres://u:p@h/d", "postgresql+psycopg"),
        ("postgresql+psycopg://u@/d?host=h1:1&host=h2:2&target_session_attrs=read-write", "postgresql+psycopg"),
    ],
)
def test_driver_is_selected_for_each_supported_url(text: str, driver: str) -> None:
    assert database_url(text).drivername == driver


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a valid URL"),
        ("mlapi.db", "is not a valid URL"),
        ("postgresql://u:hunter2@h:port/d", "is not a valid URL"),
        ("mysql://u:hunter2@h/d", "unsupported scheme mysql"),
        ("postgresql+asyncpg://u:hunter2@h/d", "unsupported scheme postgresql+asyncpg"),
        ("sqlite://", "must be sqlite:/// and a file path"),
        ("sqlite:///:memory:", "must be sqlite:///"),
        ("sqlite://mlapi.db", "must be sqlite:///"),
        ("sqlite:///mlapi.db?mode=ro", "must be sqlite:///"),
        ("sqlite:///users?backup.db", "write %3F if the question mark is part of the path"),
        ("sqlite:///mlapi.db?", "remove the ?"),
        ("sqlite://ada:hunter2@/mlapi.db", "must be sqlite:///"),
        ("sqlite://:80/mlapi.db", "must be sqlite:///"),
        ("sqlite:///mlapi.db\n", "a control character"),
        (" sqlite:///mlapi.db", "begins or ends with a space"),
        ("postgresql://u:hunter2@h/d?sslmode", "sslmode after the ? has no value: write sslmode=value"),
        ("postgresql://u:hunter2@h/d?sslmode=", "sslmode after the ? has no value"),
        ("postgresql://u@h/d?password=a&hunter2", "an option after the ? has no value: write name=value"),
        ("postgresql://u:hunter2@h/d?", "an option after the ? has no value"),
        ("postgresql://u:hunter2@h/d?sslmode=require&", "an option after the ? has no value"),
        ("postgresql://u:hunter2@h/d?=require", "an option after the ? has no value"),
        ("postgresql://u:hunter2@h/d?ssl%6Dode=allow&sslmode=require", "database.url sets sslmode twice"),
        ("postgresql://u:hunter2@h/d?password=other", "database.url sets password twice"),
        ("postgresql://u:hunter2@h1/d?host=h2", "database.url sets host twice"),
        ("postgresql://u@h/d?password=hunter2+3", "password contains a +: write %2B"),
        ("postgresql://u:hunter2@h/d?connect_timeout=3\n&sslmode=require", "a control character"),
        ("postgresql://u:hunter2@h/d#fragment", "can be read in more than one way"),
        ("postgresql://u:hunter2@h/a%00b", "a control character"),
        ("sqlite:////no/such/folder/mlapi.db", "'/no/such/folder/mlapi.db' must be a file in an existing folder"),
        ("sqlite:////tmp", "'/tmp' must be a file in an existing folder"),
        (f"sqlite:////{'a' * 300}/mlapi.db", "must be a file in an existing folder"),
        ("sqlite:////tmp/a\0b/mlapi.db", "a control character"),
        (f"postgresql://u@{'a' * 70}.x/d", "is not a valid URL"),
        ("postgresql://u:hunter2@h:0/d", "the port must be from 1 to 65535"),
    ],
)
def test_error_for_an_invalid_url_does_not_contain_it(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        database_url(text)

    assert reason in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("sslmod=require", "an unknown PostgreSQL option: did you mean sslmode"),
        ("password=a&hunter2=b", "an unknown PostgreSQL option: remove it, and write & in a value as %26"),
        ("host=a:x&host=b:1", "write several hosts as host=db1:5432&host=db2:5432"),
    ],
)
def test_unknown_postgresql_option_is_rejected(options: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        Database(database_url(f"postgresql://u@/d?{options}"))

    assert "hunter2" not in str(caught.value)


def test_path_in_a_url_may_be_percent_encoded(tmp_path: Path) -> None:
    assert database_url(f"sqlite:///{tmp_path}/users%3Fbackup%25.db").database == f"{tmp_path}/users?backup%.db"
    assert database_url("postgresql://h/my%3Fusers").database == "my?users"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_database_with_an_encoding_other_than_utf8_is_rejected(
    postgres: PostgresServer, open_database: OpenDatabase, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'")

    with pytest.raises(ConfigurationError, match=f"the database's encoding is {encoding}"):
        upgrade(open_database(postgres.url(name)))


def test_missing_driver_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(ConfigurationError, match=r"PostgreSQL needs psycopg: pip install 'mlapi-users\[postgres\]'"):
        Database(database_url("postgresql://u:p@h/d"))


def test_connection_url_works_with_special_characters(postgres: PostgresServer, open_database: OpenDatabase) -> None:
    assert set("@/:%? ") <= set(PASSWORD)
    database = open_database(
        connection_url(username="mlapi", password=PASSWORD, host="127.0.0.1", port=postgres.port, database="postgres")
    )

    with database.reading() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


# --- settings


def test_sqlite_is_durable_and_private(sqlite_url: URL, open_database: OpenDatabase) -> None:
    database = open_database(sqlite_url)

    with database.reading() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }

    extra = 3
    assert settings == {"journal_mode": "wal", "synchronous": extra, "foreign_keys": 1, "busy_timeout": 2000}
    assert stat.S_IMODE(Path(str(sqlite_url.database)).stat().st_mode) == 0o600


@pytest.mark.parametrize(("is_writable", "store"), [(True, 0), (False, 2)])
def test_temporary_data_stays_in_memory_without_a_folder(
    is_writable: bool, store: int, sqlite_url: URL, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda _folder, _mode: is_writable)

    with open_database(sqlite_url) as database:
        assert database.read(lambda connection: connection.exec_driver_sql("PRAGMA temp_store").scalar_one()) == store


def test_existing_database_file_keeps_its_mode(sqlite_url: URL, open_database: OpenDatabase) -> None:
    file = Path(str(sqlite_url.database))
    file.touch(0o640)
    mode = stat.S_IMODE(file.stat().st_mode)

    upgrade(open_database(sqlite_url))

    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_postgresql_commits_to_disk_despite_server_defaults(
    postgres: PostgresServer, postgres_url: URL, open_database: OpenDatabase
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_url.database} SET synchronous_commit = off")
    database = open_database(postgres_url)

    with database.reading() as connection:
        settings = [
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("synchronous_commit", "lock_timeout", "statement_timeout")
        ]

    assert settings == ["on", "2s", "4s"]


def test_configured_synchronous_commit_is_kept(
    postgres: PostgresServer, postgres_url: URL, open_database: OpenDatabase
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_url.database} SET synchronous_commit = remote_apply")
    database = open_database(postgres_url)

    with database.reading() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "remote_apply"


def test_stored_time_has_a_time_zone_and_is_in_utc(database: Database) -> None:
    in_another_zone = LATER.astimezone(timezone(timedelta(hours=-8)))

    with database.reading() as connection:
        stored = connection.execute(select(literal(in_another_zone, UtcDateTime))).scalar_one()

    assert (stored, stored.tzinfo) == (LATER, UTC)


# --- transactions


class InterceptedConnection:
    """A driver connection that calls a hook before each statement. The hook can return a replacement statement."""

    def __init__(self, connection: Any, hook: Callable[[str], str | None]) -> None:
        self._connection = connection
        self._hook = hook

    def execute(self, statement: Any, *parameters: Any, **options: Any) -> Any:
        text = statement.decode() if isinstance(statement, bytes) else statement
        changed = self._hook(text) or text
        return self._connection.execute(
            changed.encode() if isinstance(statement, bytes) else changed, *parameters, **options
        )

    def executemany(self, statement: str, rows: Any) -> Any:
        return self._connection.executemany(self._hook(statement) or statement, rows)


def intercepted(database: Database, hook: Callable[[str], str | None]) -> SqlUserRepository:
    """Return a repository that calls the hook before each statement in a batch."""
    dialect = database.dialect

    class InterceptingDialect:
        def __getattr__(self, name: str) -> Any:
            return getattr(dialect, name)

        def apply_and_commit(self, *_: object, **_options: object) -> None:
            """Return None, so that `apply` is called for every batch."""

        def apply(self, connection: Any, commands: Sequence[Command]) -> list[Outcome]:
            return dialect.apply(InterceptedConnection(connection, hook), commands)

    database.dialect = InterceptingDialect()
    return SqlUserRepository(database)


def test_batch_is_invisible_until_it_is_committed(database: Database, open_database: OpenDatabase) -> None:
    observer = SqlUserRepository(open_database(database.engine.url))
    ada = registered(SqlUserRepository(database), "ada")
    seen: list[list[User]] = []

    def observe(_statement: str) -> None:
        seen.append(observer.list_page(after=UserId(0), limit=10))

    repository = intercepted(database, observe)
    repository.apply([registration("bob"), SetEnabled(user_id=ada.id, enabled=False, at=LATER), registration("eve")])

    assert len(seen) >= 2
    assert all(users == [ada] for users in seen)
    assert [user.enabled for user in observer.list_page(after=UserId(0), limit=10)] == [False, True, True]


def test_batch_that_fails_halfway_is_rolled_back(database: Database) -> None:
    inserts: list[str] = []

    def break_the_second_insert(statement: str) -> str | None:
        if "INSERT INTO users" in statement:
            inserts.append(statement)
        return statement.replace("INTO users", "INTO nothing") if len(inserts) == 2 else None

    repository = intercepted(database, break_the_second_insert)
    batch = [registration("ada"), registration("ADA"), registration("bob")]
    with pytest.raises(RepositoryUnavailableError, match=r"a statement failed \(SQLITE_ERROR|a table is missing"):
        repository.apply(batch)

    assert repository.list_page(after=UserId(0), limit=10) == []
    assert len(rejections(repository.apply(batch))) == 1


def test_statement_error_contains_no_values(database: Database) -> None:
    repository = intercepted(database, lambda statement: statement.replace("INTO users", "INTO nothing"))

    with pytest.raises(RepositoryUnavailableError) as caught:
        repository.apply([registration("ada-the-canary", email="canary@example.com")])

    assert "canary" not in f"{caught.value} {caught.value!r} {caught.value.__cause__} {caught.value.__context__}"


def test_name_freed_during_registration_can_be_registered(
    postgres_database: Database, postgres_url: URL, open_database: OpenDatabase
) -> None:
    rival = SqlUserRepository(open_database(postgres_url))
    ada = registered(rival)

    def remove_before_the_id_is_selected(statement: str) -> None:
        if statement.startswith("WITH") and "INSERT" not in statement:
            rival.apply([Remove(user_id=ada.id)])

    new_ada = registered(intercepted(postgres_database, remove_before_the_id_is_selected))

    assert new_ada.id > ada.id


def test_name_repeatedly_taken_and_freed_raises_an_error(
    postgres_database: Database, postgres_url: URL, open_database: OpenDatabase
) -> None:
    rival = SqlUserRepository(open_database(postgres_url))

    def register_or_remove(statement: str) -> None:
        user = rival.find(registration().username_key)
        if "INSERT" in statement:
            assert user is None
            registered(rival)
        else:
            assert user is not None
            rival.apply([Remove(user_id=user.id)])

    with pytest.raises(RepositoryUnavailableError, match="keep registering and removing the same username"):
        intercepted(postgres_database, register_or_remove).apply([registration()])


def test_deadlocked_batches_are_both_applied(
    postgres_database: Database, postgres_url: URL, open_database: OpenDatabase
) -> None:
    """Each batch registers a name and then, in its second segment, the name that the other batch registers first."""
    barrier = threading.Barrier(2)

    def apply(first: str, second: str) -> list[Outcome]:
        def wait_for_the_other(_statement: str) -> None:
            with suppress(threading.BrokenBarrierError):
                barrier.wait(2)

        repository = intercepted(open_database(postgres_url), wait_for_the_other)
        names = [first, first, second]  # a repeated name starts a new segment of the batch
        return repository.apply([registration(name) for name in names])

    with ThreadPoolExecutor(2) as pool:
        outcomes = [f.result(30) for f in [pool.submit(apply, "ada", "bob"), pool.submit(apply, "bob", "ada")]]

    users = {
        name: SqlUserRepository(postgres_database).find(registration(name).username_key) for name in ("ada", "bob")
    }
    assert None not in users.values()
    # One batch registers both names, so only its repeated command is rejected. The other batch finds every name taken.
    assert sorted(len(rejections(batch)) for batch in outcomes) == [1, 3]


def test_batches_with_the_same_users_do_not_deadlock(
    postgres_database: Database, postgres_url: URL, open_database: OpenDatabase
) -> None:
    ids = [registered(SqlUserRepository(postgres_database), name).id for name in ("ada", "bob")]
    barrier = threading.Barrier(2)

    def count_statements(first: UserId, second: UserId) -> int:
        executed: list[str] = []

        def wait_for_the_other(statement: str) -> None:
            executed.append(statement)
            with suppress(threading.BrokenBarrierError):
                barrier.wait(0.5)

        commands = [SetEnabled(user_id=user_id, enabled=False, at=LATER) for user_id in (first, first, second)]
        repository = intercepted(open_database(postgres_url), wait_for_the_other)
        assert rejections(repository.apply(commands)) == []
        return len(executed)

    with ThreadPoolExecutor(2) as pool:
        counts = [
            f.result(30) for f in [pool.submit(count_statements, *ids), pool.submit(count_statements, *reversed(ids))]
        ]

    # Four statements: lock the rows, update them in two segments, write the audit trail. Neither batch was retried.
    assert counts == [4, 4]


def test_concurrent_batches_all_succeed(url: URL, open_database: OpenDatabase) -> None:
    databases = [open_database(url) for _ in range(4)]
    upgrade(databases[0])
    repositories = [SqlUserRepository(database) for database in databases]
    ids = [registered(repositories[0], f"user{number}").id for number in range(30)]

    def toggle(number: int) -> int:
        shuffled = sorted(ids, key=lambda user_id: (user_id * 7919 + number * 104729) % 31)
        commands = [SetEnabled(user_id=user_id, enabled=bool(number % 2), at=LATER) for user_id in shuffled]
        return len(rejections(repositories[number % 4].apply(commands)))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(toggle, range(80))) == 0


def test_concurrent_registrations_create_only_one_user(url: URL, open_database: OpenDatabase) -> None:
    databases = [open_database(url), open_database(url)]
    upgrade(databases[0])
    repositories = [SqlUserRepository(database) for database in databases]

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda number: apply_one(repositories[number % 2], registration()), range(64)))

    (user,) = (outcome for outcome in outcomes if isinstance(outcome, User))
    assert rejections(outcomes) == [UserExistsError(user.id)] * 63
    assert repositories[0].list_page(after=UserId(0), limit=10) == [user]


# --- faults and recovery


@contextmanager
def write_lock(url: URL) -> Iterator[None]:
    """Hold an SQLite database's write lock, like another process would."""
    other = sqlite3.connect(str(url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def test_locked_sqlite_database_is_unavailable_until_unlocked(sqlite_database: Database, sqlite_url: URL) -> None:
    ada = registered(SqlUserRepository(sqlite_database))
    database = Database(sqlite_url, timeout_seconds=0.2)
    repository = SqlUserRepository(database)

    with write_lock(sqlite_url):
        with pytest.raises(RepositoryUnavailableError, match="database is locked"):
            repository.apply([registration("bob")])
        with pytest.raises(RepositoryUnavailableError, match="database is locked"):
            repository.check()
        assert repository.get(ada.id) == ada

    assert isinstance(apply_one(repository, registration("bob")), User)
    database.close()


def test_writer_without_a_write_slot_gets_an_error(sqlite_database: Database, sqlite_url: URL) -> None:
    database = Database(sqlite_url, timeout_seconds=0.2)
    repository = SqlUserRepository(database)
    writing, released = threading.Event(), threading.Event()

    def write() -> None:
        with database.writing():
            writing.set()
            released.wait(10)

    writer = threading.Thread(target=write)
    writer.start()
    writing.wait(10)
    with pytest.raises(RepositoryUnavailableError, match="too many threads are writing"):
        repository.apply([registration()])
    released.set()
    writer.join()

    assert isinstance(apply_one(repository, registration()), User)
    database.close()


def test_reader_without_a_free_connection_gets_an_error(sqlite_url: URL) -> None:
    database = Database(sqlite_url, timeout_seconds=0.1, max_connections=1)

    with database.reading(), pytest.raises(RepositoryUnavailableError, match="no free connection"), database.reading():
        pass
    database.close()


def test_damaged_sqlite_file_is_reported_as_unavailable(sqlite_url: URL, open_database: OpenDatabase) -> None:
    Path(str(sqlite_url.database)).write_bytes(b"this is not a database, but long enough to be read as one" * 100)
    repository = SqlUserRepository(open_database(sqlite_url))

    with pytest.raises(RepositoryUnavailableError, match="file is not a database"):
        repository.check()


def test_full_disk_is_reported_as_unavailable_and_loses_nothing(sqlite_database: Database) -> None:
    users = [registered(SqlUserRepository(sqlite_database), f"user{number}") for number in range(10)]
    full_database = Database(sqlite_database.engine.url)

    @event.listens_for(full_database.engine, "connect")
    def limit_size(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # raises SQLITE_FULL, like a full disk

    repository = SqlUserRepository(full_database)
    with pytest.raises(RepositoryUnavailableError, match="full"):
        repository.apply([registration(f"more{number}" + "x" * 200) for number in range(200)])

    assert repository.list_page(after=UserId(0), limit=100) == users
    full_database.close()


def test_read_only_postgresql_is_unavailable_until_writable(
    postgres: PostgresServer, postgres_database: Database
) -> None:
    repository = SqlUserRepository(postgres_database)
    name = postgres_database.engine.url.database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    postgres_database.close()  # new sessions read the new default

    with pytest.raises(RepositoryUnavailableError, match="the database is read-only"):
        repository.apply([registration()])
    with pytest.raises(RepositoryUnavailableError, match="the database is read-only"):
        repository.check()
    postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    assert isinstance(apply_one(repository, registration()), User)


def test_locked_postgresql_table_is_unavailable_until_unlocked(
    postgres: PostgresServer, postgres_url: URL, open_database: OpenDatabase
) -> None:
    database = open_database(postgres_url)
    upgrade(database)
    repository = SqlUserRepository(database)

    with postgres.connect(str(postgres_url.database)) as other, other.transaction():
        other.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(RepositoryUnavailableError, match="a row or table is locked"):
            repository.apply([registration()])

    assert isinstance(apply_one(repository, registration()), User)


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_restarted_postgresql_has_all_acknowledged_changes(
    postgres: PostgresServer, postgres_url: URL, stop_signal: signal.Signals, open_database: OpenDatabase
) -> None:
    database = open_database(postgres_url)
    upgrade(database)
    repository = SqlUserRepository(database)
    ada = registered(repository)

    if stop_signal is signal.SIGKILL:
        postgres.signal_all(stop_signal)  # including the sessions, which briefly outlive their parent process
    else:
        postgres.stop(stop_signal)
    try:
        with pytest.raises(RepositoryUnavailableError):
            repository.apply([registration("bob")])
        with pytest.raises(RepositoryUnavailableError):
            repository.get(ada.id)
    finally:
        postgres.start()

    assert repository.get(ada.id) == ada
    assert isinstance(apply_one(repository, registration("bob")), User)


# --- nonblocking reads


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_failed_nonblocking_read_leaves_no_connection_open(sqlite_database: Database) -> None:
    repository = SqliteUserRepository(sqlite_database)
    repository.find_principals([UserId(1)])
    with sqlite_database.writing() as connection:
        connection.execute(text("ALTER TABLE users RENAME TO gone"))
    before = count_open_files()

    for _ in range(20):
        with pytest.raises(RepositoryUnavailableError):
            repository.find_principals_nowait([UserId(1)])

    assert count_open_files() <= before


def test_bug_in_a_nonblocking_read_leaves_no_connection_open(sqlite_database: Database) -> None:
    def fail(_connection: object) -> None:
        raise ZeroDivisionError

    sqlite_database.read_batch(lambda connection: connection.execute("SELECT 1").fetchall())
    before = count_open_files()

    with pytest.raises(ZeroDivisionError):
        sqlite_database.read_nowait(fail)

    assert count_open_files() < before


# --- a replaced SQLite file


def replace_database(url: URL, backup: Path) -> None:
    backup.replace(str(url.database))
    for suffix in ("-wal", "-shm"):
        Path(f"{url.database}{suffix}").unlink(missing_ok=True)


def back_up_database(url: URL, backup: Path) -> None:
    source, target = sqlite3.connect(str(url.database)), sqlite3.connect(backup)
    source.backup(target)
    source.close()
    target.close()


def test_replaced_database_file_is_detected_on_next_use(
    sqlite_database: Database, sqlite_url: URL, tmp_path: Path
) -> None:
    repository = SqliteUserRepository(sqlite_database)
    ada = registered(repository)
    repository.find_principals([ada.id])
    backup = tmp_path / "backup.db"
    back_up_database(sqlite_url, backup)
    repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER)])

    replace_database(sqlite_url, backup)

    with pytest.raises(RepositoryUnavailableError, match="no nonblocking connection"):
        repository.find_principals_nowait([ada.id])
    assert repository.find_principals([ada.id]) == [ada]
    assert repository.find_principals_nowait([ada.id]) == [ada]


def test_connection_to_a_file_replaced_during_use_is_closed(
    sqlite_database: Database, sqlite_url: URL, tmp_path: Path
) -> None:
    repository = SqliteUserRepository(sqlite_database)
    ada = registered(repository)
    back_up_database(sqlite_url, tmp_path / "backup.db")
    repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER)])
    repository.find_principals([ada.id])

    def notice_replacement(_connection: object) -> None:
        replace_database(sqlite_url, tmp_path / "backup.db")
        repository.find_principals([ada.id])

    sqlite_database.read_nowait(notice_replacement)

    assert repository.find_principals_nowait([ada.id]) == [ada]


def test_disposed_pool_closes_connections_that_are_returned(database: Database) -> None:
    with database.reading() as connection:
        driver_connection: Any = connection.connection.driver_connection
        database.pools.dispose()
        driver_connection.execute("SELECT 1")

    with pytest.raises(database.engine.dialect.loaded_dbapi.Error, match="closed"):
        driver_connection.execute("SELECT 1")


def test_disposed_pool_lets_waiting_threads_connect_at_once(url: URL) -> None:
    with Database(url, max_connections=1, timeout_seconds=30) as database, ThreadPoolExecutor() as threads:
        with database.reading():
            waiting = threads.submit(database.read, lambda connection: connection.scalar(text("SELECT 1")))
            time.sleep(0.1)  # until it waits for the connection
            database.pools.dispose()

        assert waiting.result(timeout=10) == 1


def test_write_to_a_removed_database_file_raises_an_error(sqlite_database: Database, sqlite_url: URL) -> None:
    repository = SqlUserRepository(sqlite_database)
    registered(repository)
    Path(str(sqlite_url.database)).unlink()

    for number in range(3):
        with pytest.raises(RepositoryUnavailableError):
            repository.apply([registration(f"user{number}")])
        with pytest.raises(RepositoryUnavailableError):
            repository.check() if number == 0 else repository.get(UserId(1))


def test_write_replaces_connections_that_stayed_read_only(sqlite_database: Database) -> None:
    repository = SqlUserRepository(sqlite_database)
    ada = registered(repository)
    connections = [sqlite_database.engine.raw_connection() for _ in range(3)]
    for connection in connections:  # as if the disk was read-only when they were opened
        connection.cursor().execute("PRAGMA query_only = ON")
        connection.close()

    (disabled,) = repository.apply([SetEnabled(user_id=ada.id, enabled=False, at=LATER)])

    assert repository.get(ada.id) == disabled


# --- the server's time zone


def test_maximum_time_can_be_stored_in_any_server_time_zone(
    postgres: PostgresServer, postgres_url: URL, open_database: OpenDatabase
) -> None:
    postgres.execute(f"ALTER DATABASE {postgres_url.database} SET TimeZone = 'Asia/Tokyo'")
    database = open_database(postgres_url)
    upgrade(database)
    repository = SqlUserRepository(database)
    user = registered(repository)

    key = with_api_key(repository, user, expires_datetime=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))

    assert repository.list_api_keys(user.id) == [key]
    assert repository.find_principals([key.id]) == [ApiKeyPrincipal(key, user)]


def test_connections_are_opened_concurrently(postgres_url: URL, open_database: Callable[[URL], Database]) -> None:
    assert postgres_url.port is not None
    threads = 8

    def read_seconds(count: int) -> float:
        database.close()  # as after a lost connection
        begin = time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda _: database.read(lambda connection: connection.scalar(select(1))), range(count)))
        return time.monotonic() - begin

    with SlowProxy(postgres_url.port) as proxy:
        database = open_database(postgres_url.set(port=proxy.port))
        read_seconds(1)
        proxy.delay_seconds = 0.1
        alone, together = read_seconds(1), read_seconds(threads)
        database.close()

    assert together < 2 * alone
