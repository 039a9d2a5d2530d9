"""Count login attempts in a database table, so that all processes share the counts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import attempts
from mlapi.domain.attempts import WindowCount

_PURGE_INTERVAL_SECONDS = 10.0
_PURGE_BATCH_ROWS = 1000
_MAX_PURGE_BATCHES = 50  # enough to keep up: each attempt costs a password hash, so they are added more slowly

_IS_CURRENT = attempts.c.expires_at > bindparam("now")
_IS_KEY = attempts.c.id == bindparam("key")
_SELECT = select(attempts.c.count, attempts.c.expires_at).where(_IS_KEY, _IS_CURRENT)
_SUBTRACT = update(attempts).where(_IS_KEY, _IS_CURRENT, attempts.c.count > 0).values(count=attempts.c.count - 1)
_EXPIRED = select(attempts.c.id).where(~_IS_CURRENT).limit(_PURGE_BATCH_ROWS).with_for_update(skip_locked=True)
_PURGE = delete(attempts).where(attempts.c.id.in_(_EXPIRED))


class SqlAttempts:
    """`AttemptCounts` in a table.

    Args:
        database: contains the table.
        clock: returns seconds since 1970. All processes should use synchronized clocks.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._purged_at = clock()

    @contextmanager
    def transaction(self) -> Iterator["SqlAttemptCounts"]:
        self._purge()
        with self._database.writing() as connection:
            self._database.dialect.allow_async_commit(connection)  # faster, and a crash loses only a few counts
            yield SqlAttemptCounts(self._database, connection, self._clock())

    @contextmanager
    def reading(self) -> Iterator["SqlAttemptCounts"]:
        with self._database.reading() as connection:
            yield SqlAttemptCounts(self._database, connection, self._clock())

    def _purge(self) -> None:
        """Delete expired counts at most once per interval, in short transactions that skip locked rows."""
        now = self._clock()
        if now - self._purged_at >= _PURGE_INTERVAL_SECONDS:
            self._purged_at = now
            for _ in range(_MAX_PURGE_BATCHES):
                purged = self._database.write(lambda connection: connection.execute(_PURGE, {"now": now}).rowcount)
                if purged < _PURGE_BATCH_ROWS:
                    break


class SqlAttemptCounts:
    """An `AttemptCountWriter` within a transaction, also used as an `AttemptCountReader`."""

    def __init__(self, database: Database, connection: Connection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._insert = database.dialect.insert

    def get(self, key: str) -> WindowCount:
        row: Any = self._connection.execute(_SELECT, {"key": key, "now": self._now}).one_or_none()
        return WindowCount(0, self._now) if row is None else WindowCount(row.count, row.expires_at)

    def add(self, key: str, *, window_seconds: float) -> int:
        has_expired, ends_at_timestamp = attempts.c.expires_at <= self._now, self._now + window_seconds
        statement = (
            self._insert(attempts)
            .values(id=key, count=1, expires_at=ends_at_timestamp)
            .on_conflict_do_update(
                index_elements=["id"],
                set_={
                    "count": case((has_expired, 1), else_=attempts.c.count + 1),
                    "expires_at": case((has_expired, ends_at_timestamp), else_=attempts.c.expires_at),
                },
            )
            .returning(attempts.c.count)
        )
        count: int = self._connection.execute(statement).scalar_one()
        return count

    def subtract(self, key: str) -> None:
        self._connection.execute(_SUBTRACT, {"key": key, "now": self._now})
