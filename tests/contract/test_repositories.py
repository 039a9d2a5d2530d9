"""Every repository we ship keeps the contract."""

import pytest

from mlapi import UserRepository
from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.adapters.sql import Database, SqliteUserRepository, SqlUserRepository
from mlapi.testing import UserRepositoryContract


class TestInMemoryUserRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self) -> UserRepository:
        return InMemoryUserRepository()


class TestSqlUserRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self, database: Database) -> UserRepository:
        return SqliteUserRepository(database) if database.is_sqlite else SqlUserRepository(database)
