"""Count login attempts in a database table, so that all processes share the counts."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.tables import attempts
from mlapi.domain.attempts import WindowCount
from mlapi.domain.errors import RepositoryUnavailableError

_PURGE_INTERVAL_SECONDS = 10.0
_PURGE_BATCH_ROWS = 1000
_MAX_PURGE_BATCHES = 50  # enough to keep up: each attempt costs a password hash, so they are added more slowly
_PURGE = purge_statement(attempts, attempts.c.expires_at <= bindparam("now"))

Work = Callable[[Any], dict[str, WindowCount]]

_logger = logging.getLogger("mlapi")


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

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        return self._read(keys, self._database.read_batch)

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        now = self._clock()
        events = dict(sorted(Counter(keys).items()))  # in the same order everywhere, so that row locks cannot deadlock

        def work(connection: Any) -> dict[str, WindowCount]:  # noqa: ANN401 - depends on the driver
            return self._database.dialect.add_counts(connection, events, now=now, ends_at=now + window_seconds)

        totals = self._database.write_repeatable(work)
        self._purge(now)
        return _count_up(keys, events, totals)

    def _read(self, keys: Sequence[str], run: Callable[[Work], dict[str, WindowCount]]) -> list[WindowCount]:
        now = self._clock()

        def work(connection: Any) -> dict[str, WindowCount]:  # noqa: ANN401 - depends on the driver
            return self._database.dialect.read_counts(connection, keys, now=now)

        found = run(work)
        return [found.get(key) or WindowCount(0, now) for key in keys]

    def _purge(self, now: float) -> None:
        """Delete expired counts at most once per interval, in short transactions that skip locked rows."""
        if now - self._purged_at < _PURGE_INTERVAL_SECONDS:
            return
        self._purged_at = now
        try:
            for _ in range(_MAX_PURGE_BATCHES):
                purged = self._database.execute(_PURGE, {"now": now, "limit": _PURGE_BATCH_ROWS})
                if purged < _PURGE_BATCH_ROWS:
                    break
        except RepositoryUnavailableError as error:
            _logger.warning("expired login attempts could not be deleted: %s", error)


class SqliteAttempts(SqlAttempts):
    """`AttemptCounts` in SQLite. They are also `NonblockingAttemptCounts`: reads are fast enough for an event loop."""

    def read_nowait(self, keys: Sequence[str]) -> list[WindowCount]:
        return self._read(keys, self._database.read_nowait)


def _count_up(keys: Sequence[str], events: Mapping[str, int], totals: Mapping[str, WindowCount]) -> list[WindowCount]:
    """Return the count after each event, given how many events were added to the count for each key, and the totals."""
    remaining = dict(events)
    counts = []
    for key in keys:
        remaining[key] -= 1
        total = totals[key]
        counts.append(WindowCount(total.count - remaining[key], total.ends_at_timestamp))
    return counts
