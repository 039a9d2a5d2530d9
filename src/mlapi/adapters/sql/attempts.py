"""Counts of attempts in a table, so that all processes share them: a storage for the library limits."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from limits.storage import Storage
from sqlalchemy import Connection, bindparam, case, delete, select, text

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.tables import attempts

_PURGED_EVERY = 10.0  # seconds
_PURGED_AT_ONCE = 1000
_PURGES = 50  # more than can be counted meanwhile: each that is let through costs a run of the cipher
_UNEXPIRED = attempts.c.expires_at > bindparam("now")
_SELECT = select(attempts.c.count, attempts.c.expires_at).where(attempts.c.id == bindparam("key"), _UNEXPIRED)
_EXPIRED = select(attempts.c.id).where(~_UNEXPIRED).limit(_PURGED_AT_ONCE).with_for_update(skip_locked=True)
_PURGE = delete(attempts).where(attempts.c.id.in_(_EXPIRED))


class SqlAttempts:
    """Gives a `limits.storage.Storage` over a table for what is to be counted in one transaction.

    Args:
        database: where.
        clock: seconds since 1970, which every process should agree on.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._purged_at = clock()

    @contextmanager
    def transaction(self) -> Iterator["SqlAttemptStorage"]:
        """Raises `RepositoryUnavailableError` if the database is away."""
        self._purge()
        with self._database.writing() as connection:
            if not self._database.is_sqlite:
                connection.execute(text("SET LOCAL synchronous_commit = off"))  # a crash may forgive a guess
            yield SqlAttemptStorage(self._database, connection, self._clock())

    @contextmanager
    def reading(self) -> Iterator["SqlAttemptStorage"]:
        """The same for a look, that waits for nobody who writes."""
        with self._database.reading() as connection:
            yield SqlAttemptStorage(self._database, connection, self._clock())

    def _purge(self) -> None:
        """Forget what has expired, now and then, in short transactions of their own that wait for nobody's rows."""
        now = self._clock()
        if now - self._purged_at >= _PURGED_EVERY:
            self._purged_at = now
            for _ in range(_PURGES):
                with self._database.writing() as connection:
                    purged = connection.execute(_PURGE, {"now": now}).rowcount
                if purged < _PURGED_AT_ONCE:
                    break


class SqlAttemptStorage(Storage):
    """Counts that expire, within a transaction."""

    STORAGE_SCHEME = None

    def __init__(self, database: Database, connection: Connection, now: float) -> None:
        super().__init__()
        self._connection = connection
        self._now = now
        self._insert = database.dialect.insert

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()  # they are translated where the transaction is

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a count; what is taken from one (a negative amount) is not taken from the next window's."""
        first, until = max(amount, 0), self._now + expiry
        has_expired = attempts.c.expires_at <= self._now
        left = case((attempts.c.count + amount > 0, attempts.c.count + amount), else_=0)
        add = (
            self._insert(attempts)
            .values(id=key, count=first, expires_at=until)
            .on_conflict_do_update(
                index_elements=["id"],
                set_={
                    "count": case((has_expired, first), else_=left),
                    "expires_at": case((has_expired, until), else_=attempts.c.expires_at),
                },
            )
            .returning(attempts.c.count)
        )
        count: int = self._connection.execute(add).scalar_one()
        return count

    def get(self, key: str) -> int:
        return self._row(key)[0]

    def get_expiry(self, key: str) -> float:
        return self._row(key)[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        return self._connection.execute(delete(attempts)).rowcount

    def clear(self, key: str) -> None:
        self._connection.execute(delete(attempts).where(attempts.c.id == key))

    def _row(self, key: str) -> tuple[int, float]:
        row: Any = self._connection.execute(_SELECT, {"key": key, "now": self._now}).one_or_none()
        return (0, self._now) if row is None else (row.count, row.expires_at)
