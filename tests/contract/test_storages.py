"""Every storage that mlapi ships passes the contract suite."""

from collections.abc import Callable

import pytest
from sqlalchemy import URL

from mlapi import AuditTrail, UserRepository
from mlapi.adapters.memory import (
    InMemoryAuditTrail,
    InMemoryManagers,
    InMemoryStorage,
    InMemoryUsage,
    InMemoryUserRepository,
)
from mlapi.adapters.sql import user_lists
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.preparation import (
    Preparation,
    PreparedUsage,
    prepare_managers_on_first_use,
    prepare_on_first_use,
)
from mlapi.application.sessions import PreparedSessions
from mlapi.domain.managers import Managers
from mlapi.domain.storage import Storage
from mlapi.domain.usage import UsageRepository
from mlapi.testing import StorageContract, UserRepositoryContract
from mlapi.testing.managers import ManagersContract
from mlapi.testing.sessions import SessionsContract
from mlapi.testing.usage import UsageRepositoryContract
from mlapi.testing.user_lists import ActivityListContract, UserListContract


class TestInMemoryStorage(StorageContract):
    forgets = True

    @pytest.fixture
    def open_storage(self) -> Callable[[], Storage]:
        return InMemoryStorage


class TestSqlStorage(StorageContract):
    @pytest.fixture
    def open_storage(self, url: URL) -> Callable[[], Storage]:
        # A schema on PostgreSQL. The other tests use the default schema.
        namespace = None if url.get_backend_name() == "sqlite" else "Model-Users"
        return lambda: SqlStorage(Database(url, namespace=namespace))


class TestSqliteListsOfManyUsers(UserListContract, ActivityListContract):
    """If an indexed filter matches too many users, SQLite reads the users in the order of the list."""

    @pytest.fixture
    def storage(self, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Storage:
        monkeypatch.setattr(user_lists, "MAX_SORTED_USERS", 0)
        return SqlStorage(sqlite_database)

    @pytest.fixture
    def repository(self, storage: Storage) -> UserRepository:
        return storage.users


class TestPreparedRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self) -> UserRepository:
        return prepare_on_first_use(InMemoryUserRepository(), Preparation(lambda: None))


class TestPreparedManagers(ManagersContract):
    @pytest.fixture
    def audit(self) -> AuditTrail:
        return InMemoryAuditTrail()

    @pytest.fixture
    def managers(self, audit: InMemoryAuditTrail) -> Managers:
        return prepare_managers_on_first_use(InMemoryManagers(audit), Preparation(lambda: None))


class TestPreparedSessions(SessionsContract):
    @pytest.fixture
    def storage(self, monkeypatch: pytest.MonkeyPatch) -> Storage:
        storage = InMemoryStorage()
        monkeypatch.setattr(storage, "sessions", PreparedSessions(storage.sessions, Preparation(lambda: None)))
        return storage


class TestPreparedUsage(UsageRepositoryContract):
    @pytest.fixture
    def usage(self) -> UsageRepository:
        return PreparedUsage(InMemoryUsage(), Preparation(lambda: None))
