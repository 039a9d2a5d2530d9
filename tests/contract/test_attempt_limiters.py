"""Every limiter of attempts we ship keeps the contract; what ours promises beyond it stands in ``test_attempts``."""

from contextlib import nullcontext

import pytest
from limits.storage import MemoryStorage

from mlapi import AttemptLimiter
from mlapi.adapters.limits import AttemptLimits, FixedWindowAttemptLimiter
from mlapi.adapters.sql import Database, SqlAttempts
from mlapi.testing import AttemptLimiterContract

LIMITS = AttemptLimits(per_name_and_address=3)


class TestFixedWindowAttemptLimiterInMemory(AttemptLimiterContract):
    @pytest.fixture
    def attempts(self) -> AttemptLimiter:
        storage = MemoryStorage()
        return FixedWindowAttemptLimiter(lambda: nullcontext(storage), LIMITS)


class TestFixedWindowAttemptLimiterInADatabase(AttemptLimiterContract):
    @pytest.fixture
    def attempts(self, sqlite_database: Database) -> AttemptLimiter:
        counts = SqlAttempts(sqlite_database)
        return FixedWindowAttemptLimiter(counts.transaction, LIMITS, reading=counts.reading)
