"""The contract of `UserRepository`, for every repository that mlapi ships."""

import pytest

from mlapi import UserRepository
from mlapi.adapters.memory import InMemoryUserRepository
from mlapi.adapters.sql import Database, SqliteUserRepository, SqlUserRepository
from mlapi.application.preparation import Preparation, prepare_on_first_use
from mlapi.testing import UserRepositoryContract


class TestInMemoryUserRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self) -> UserRepository:
        return InMemoryUserRepository()


class TestSqlUserRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self, database: Database) -> UserRepository:
        return SqliteUserRepository(database) if database.is_sqlite else SqlUserRepository(database)


class TestPreparedRepository(UserRepositoryContract):
    @pytest.fixture
    def repository(self) -> UserRepository:
        return prepare_on_first_use(InMemoryUserRepository(), Preparation(lambda: None))
