"""Guards read SQLite files without SQLAlchemy, and see what the service writes."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import URL

import mlapi.bootstrap
from mlapi import ApiKey, ConfigurationError, RepositoryUnavailableError, User, forks
from mlapi.adapters import sql
from mlapi.adapters.sql import idle_connections
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqliteUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.sqlite import guard_storage
from mlapi.adapters.sql.sqlite.guard_storage import SqliteGuardStorage
from mlapi.adapters.sql.usage import SqlUsage
from mlapi.config import DatabaseSettings, Settings
from mlapi.domain.commands import AddApiKey, RecordApiKeyUse, SetEnabled
from mlapi.domain.credentials import ApiKeyId, ApiKeyPrincipal, PrincipalId
from mlapi.domain.errors import ApiKeyNotFoundError, ReadOnlyRepositoryError
from mlapi.domain.usage import UsageRepository, UsageRow
from mlapi.domain.users import UserId, utc_now
from mlapi.testing.samples import registered
from mlapi.testing.usage import UsageRepositoryContract, row


@pytest.fixture
def file(sqlite_url: URL) -> Path:
    return Path(str(sqlite_url.database))


@pytest.fixture
def service(sqlite_url: URL) -> Iterator[SqliteUserRepository]:
    with Database(sqlite_url) as database:
        upgrade(database)
        yield SqliteUserRepository(database)


@pytest.fixture
def ada(service: SqliteUserRepository) -> User:
    return registered(service)


@pytest.fixture
def key(service: SqliteUserRepository, ada: User) -> ApiKey:
    key = ApiKey(id=ApiKeyId("0" * 16), user_id=ada.id, name="job", digest="0" * 64, created_datetime=utc_now())
    service.apply([AddApiKey(key=key)])
    return key


@pytest.fixture
def storage(file: Path, ada: User) -> Iterator[SqliteGuardStorage]:
    with closing(SqliteGuardStorage.from_file(file)) as storage:
        yield storage


def test_guard_finds_the_same_principals_as_the_service(
    storage: SqliteGuardStorage, service: SqliteUserRepository, ada: User, key: ApiKey
) -> None:
    ids: list[PrincipalId] = [ada.id, key.id, UserId(99), ApiKeyId("é"), UserId(2**70)]

    found = storage.find_principals(ids)

    assert found == service.find_principals(ids) == storage.find_principals_nowait(ids)
    assert found[:3] == [ada, ApiKeyPrincipal(key, ada), None]
    assert storage.find_principals([]) == []


def test_guard_sees_changes_at_once(storage: SqliteGuardStorage, service: SqliteUserRepository, ada: User) -> None:
    storage.find_principals([ada.id])
    service.apply([SetEnabled(user_id=ada.id, enabled=False, at=utc_now(), token_epoch="new")])

    for found in (storage.find_principals([ada.id]), storage.find_principals_nowait([ada.id])):
        assert [user.enabled for user in found if isinstance(user, User)] == [False]


@pytest.mark.parametrize("text", ["2027-01-31", "2027-01-31 00:00:00", "2027-01-31 00:00:00.000000"])
def test_guard_reads_times_that_were_written_with_sql(
    storage: SqliteGuardStorage, service: SqliteUserRepository, ada: User, file: Path, text: str
) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE users SET expires_datetime = ?", [text])

    found = storage.find_principals([ada.id])

    assert found == [service.get(ada.id)] == service.find_principals([ada.id])
    assert [user.expires_datetime for user in found if isinstance(user, User)] == [datetime(2027, 1, 31, tzinfo=UTC)]


def test_guard_records_the_use_of_api_keys(
    storage: SqliteGuardStorage, service: SqliteUserRepository, key: ApiKey
) -> None:
    now = utc_now()

    used, unknown = storage.apply([RecordApiKeyUse(key_id=each, at=now) for each in (key.id, ApiKeyId("f" * 16))])

    assert service.list_api_keys(key.user_id) == [used]
    assert isinstance(used, ApiKey)
    assert used.last_used_datetime == now
    assert isinstance(unknown, ApiKeyNotFoundError)


class GuardUsage(SqlUsage):
    """Adds usage like a guard, and reads it like the service."""

    def __init__(self, database: Database, guard: SqliteGuardStorage) -> None:
        super().__init__(database)
        self._guard = guard

    def add(self, rows: Sequence[UsageRow]) -> None:
        self._guard.usage.add(rows)


class TestGuardUsage(UsageRepositoryContract):
    @pytest.fixture
    def usage(self, sqlite_url: URL, storage: SqliteGuardStorage) -> Iterator[UsageRepository]:
        with Database(sqlite_url) as database:
            yield GuardUsage(database, storage)


def test_account_that_may_only_read_cannot_add_usage(
    storage: SqliteGuardStorage, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = storage._connect

    def connect_read_only() -> sqlite3.Connection:
        connection = connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    monkeypatch.setattr(storage, "_connect", connect_read_only)

    with pytest.raises(ReadOnlyRepositoryError, match="this account may only read the database"):
        storage.usage.add([row()])
    with pytest.raises(ReadOnlyRepositoryError):
        storage.apply([RecordApiKeyUse(key_id=key.id, at=utc_now())])
    assert storage.find_principals([key.user_id]) != [None]


def test_other_errors_while_adding_usage_are_transient(storage: SqliteGuardStorage, file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TABLE mlapi_usage")

    with pytest.raises(RepositoryUnavailableError, match="the table mlapi_usage is missing") as raised:
        storage.usage.add([row()])

    assert type(raised.value) is RepositoryUnavailableError


def test_lookup_without_waiting_needs_an_idle_connection(storage: SqliteGuardStorage, ada: User) -> None:
    with pytest.raises(RepositoryUnavailableError, match="no nonblocking connection is idle"):
        storage.find_principals_nowait([ada.id])


def test_threads_can_read_concurrently(storage: SqliteGuardStorage, ada: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_connections, "MAX_IDLE_CONNECTIONS", 2)
    barrier = Barrier(8)

    def find(_number: int) -> list[object]:
        return storage.read(lambda connection: [barrier.wait(10) >= 0, connection.execute("SELECT 1").fetchall()])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(find, range(8))) == [[True, [(1,)]]] * 8
    assert len(storage._idle) == 2


def test_guard_requires_the_newest_schema(storage: SqliteGuardStorage, file: Path) -> None:
    storage.prepare(may_upgrade=False)
    with pytest.raises(ConfigurationError, match="a guard cannot change the schema"):
        storage.prepare(may_upgrade=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE mlapi_alembic_version SET version_num = '0001'")
        connection.commit()

    with pytest.raises(ConfigurationError, match="is at revision 0001"):
        storage.prepare(may_upgrade=False)


def test_guard_uses_a_replaced_file_and_notices_its_removal(
    storage: SqliteGuardStorage, service: SqliteUserRepository, file: Path, ada: User, tmp_path: Path
) -> None:
    assert storage.find_principals([ada.id]) == [ada]
    service._database.close()
    storage.close()
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        source.backup(copy)
        copy.execute("DELETE FROM users")
        copy.commit()
    (tmp_path / "copy.db").replace(file)

    assert storage.find_principals([ada.id]) == [None]
    file.unlink()
    for find in (storage.find_principals, storage.find_principals_nowait):
        with pytest.raises(RepositoryUnavailableError):
            find([ada.id])
    assert not file.exists()


def test_guard_closes_connections_in_use_to_a_replaced_file(
    storage: SqliteGuardStorage, service: SqliteUserRepository, file: Path, ada: User, tmp_path: Path
) -> None:
    service._database.close()
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        source.backup(copy)
        copy.execute("DELETE FROM users")
        copy.commit()

    def notice_replacement(_connection: sqlite3.Connection) -> None:
        (tmp_path / "copy.db").replace(file)
        for ending in ("-wal", "-shm"):  # they belong to the old file
            Path(f"{file}{ending}").unlink()
        storage.find_principals([ada.id])

    assert storage.find_principals([ada.id]) == [ada]
    storage.read(notice_replacement)

    assert storage.find_principals([ada.id]) == [None]


def test_damaged_rows_are_reported_without_their_content(storage: SqliteGuardStorage, file: Path, ada: User) -> None:
    storage.find_principals([ada.id])
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE users SET created_datetime = 'secret'")
        connection.commit()

    for find in (storage.find_principals, storage.find_principals_nowait):
        with pytest.raises(RepositoryUnavailableError, match=r"unreadable data \(ValueError\); run `mlapi doctor`"):
            find([ada.id])


def test_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100, "utf-8")

    storage = SqliteGuardStorage.from_file(tmp_path / "notes.txt")

    with pytest.raises(RepositoryUnavailableError, match="the file is not a database"):
        storage.prepare(may_upgrade=False)


def test_unexpected_error_is_not_hidden(storage: SqliteGuardStorage) -> None:
    def fail(_connection: sqlite3.Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.read(fail)


def test_guard_continues_in_a_forked_child(storage: SqliteGuardStorage, ada: User) -> None:
    storage.find_principals([ada.id])

    if (pid := os.fork()) == 0:
        is_found = False
        try:
            is_found = storage.find_principals([ada.id]) == [ada]
        finally:
            os._exit(not is_found)  # even after an error: the child must not run the other tests

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert storage.find_principals([ada.id]) == [ada]


def test_child_refuses_a_file_that_was_in_use_at_the_fork(
    storage: SqliteGuardStorage, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_storage, "_FORK_TIMEOUT_SECONDS", 0.01)
    with storage._operations:
        storage.pause()
        with pytest.raises(RepositoryUnavailableError, match="the process is forking"):
            storage.find_principals_nowait([ada.id])
        storage.resume()
    forks._initialize_all()

    with pytest.raises(RepositoryUnavailableError, match="fork before or after it"):
        storage.find_principals([ada.id])
    storage.pause()  # the refusal also applies to a child of this child
    storage.resume()
    forks._initialize_all()
    with pytest.raises(RepositoryUnavailableError, match="fork before or after it"):
        storage.find_principals([ada.id])


@pytest.mark.parametrize("package", [mlapi, mlapi.bootstrap, sql], ids=lambda package: package.__name__)
def test_packages_with_lazy_imports_have_no_other_names(package: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        package.missing  # type: ignore[attr-defined]  # noqa: B018 - this is what the test checks


def test_error_of_a_read_only_account_is_described() -> None:
    error = sqlite3.OperationalError("attempt to write a readonly database")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_READONLY, "SQLITE_READONLY"

    assert guard_storage._describe_error(error) == "this account may only read the database (SQLITE_READONLY)"


def test_error_of_a_missing_file_says_what_to_check() -> None:
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CANTOPEN, "SQLITE_CANTOPEN"

    assert guard_storage._describe_error(error).endswith("also start the service (SQLITE_CANTOPEN)")


def test_path_that_is_too_long_is_left_to_the_service_storage() -> None:
    settings = Settings(database=DatabaseSettings(url=f"sqlite:////{'x' * 5000}"))

    with pytest.raises(ConfigurationError, match="database"), mlapi.bootstrap.open_guard(settings):
        pass
