"""Every attempt limiter that mlapi ships passes the contract suite. See ``test_attempts`` for further tests."""

import pytest

from mlapi import AttemptLimiter
from mlapi.adapters.memory import InMemoryAttempts
from mlapi.adapters.sql.attempts import SqlAttempts
from mlapi.adapters.sql.database import Database
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.testing import AttemptLimiterContract

LIMITS = AttemptLimits(per_name_and_address=3)


class TestFixedWindowAttemptLimiterInMemory(AttemptLimiterContract):
    @pytest.fixture
    def attempts(self) -> AttemptLimiter:
        return FixedWindowAttemptLimiter(InMemoryAttempts(), LIMITS)


class TestFixedWindowAttemptLimiterInADatabase(AttemptLimiterContract):
    @pytest.fixture
    def attempts(self, sqlite_database: Database) -> AttemptLimiter:
        return FixedWindowAttemptLimiter(SqlAttempts(sqlite_database), LIMITS)
