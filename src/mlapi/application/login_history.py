"""Record logins in the background, so that no login waits for a write or fails because of one."""

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import final

from mlapi.application.background import Outage, WriterThread
from mlapi.application.preparation import Preparation
from mlapi.domain.errors import MlapiError, ReadOnlyRepositoryError
from mlapi.domain.logins import Login, Logins
from mlapi.domain.users import UserId
from mlapi.forks import call_in_children, new_lock

INTERVAL_SECONDS = 0.8
RETRY_SECONDS = 5.0
CLOSING_SECONDS = 5.0
"""How long `BackgroundLogins.close` retries if the database has just become unavailable."""
_CLOSING_RETRY_SECONDS = 0.2
MAX_WAITING = 50_000
"""Maximum number of logins that are kept while the database is unavailable. They take about 15 MB of memory."""
MAX_BATCH_ROWS = 1000
MAX_PER_MINUTE = 60
"""Maximum number of logins recorded for one user in a minute. A program that logs in for each request must not fill the
disk."""
_MAX_COUNTED_USERS = 50_000

_logger = logging.getLogger("mlapi")


class UnrecordedLogins:
    """A `LoginRecorder` that records nothing."""

    def record(self, user_id: UserId, at: datetime, address: str) -> None:
        """Do nothing."""


@final
class BackgroundLogins:
    """A `LoginRecorder` that collects logins, and writes them about once a second from one thread.

    If a write fails, it keeps the logins and writes them later. It drops logins and logs a warning if `MAX_WAITING` are
    waiting, or if the database account has only read access.

    Close it to write the remaining logins. If you do not close it, it writes them when the process exits, unless the
    process is killed.

    Args:
        logins: stores the logins.
        interval_seconds: how long to collect logins before writing them.
    """

    def __init__(self, logins: Logins, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._logins = logins
        self._lock = new_lock()
        self._write_lock = new_lock()
        self._initialize()
        call_in_children(self._initialize)
        self._thread = WriterThread(self._write, self.close, name="mlapi-logins", interval_seconds=interval_seconds)

    def _initialize(self) -> None:
        """Start empty. After a fork, the parent writes the logins that it has collected."""
        self._waiting: deque[Login] = deque()
        self._dropped = 0
        self._minute = 0
        self._counts: Counter[UserId] = Counter()
        self._outage = Outage()

    def record(self, user_id: UserId, at: datetime, address: str) -> None:
        with self._lock:
            if not self._count(user_id, at):
                return
            if len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append(Login(user_id, at, address))
        self._thread.wake()

    def close(self) -> None:
        """Write the remaining logins before returning. Retry for a few seconds, but not in an outage."""
        self._thread.stop()
        give_up_at = time.monotonic() + (CLOSING_SECONDS if self._outage.error is None else 0)
        while self._write(is_last_chance=True) and time.monotonic() < give_up_at:
            time.sleep(_CLOSING_RETRY_SECONDS)
        with self._lock:
            lost = len(self._waiting)
            self._waiting.clear()
        if lost:
            _logger.warning("%d logins were not recorded: %s", lost, self._outage.error)

    def _count(self, user_id: UserId, at: datetime) -> bool:
        """Count a login, and return whether the user is within the limit. The caller holds the lock."""
        minute = int(at.timestamp()) // 60
        if minute != self._minute or len(self._counts) >= _MAX_COUNTED_USERS:
            self._minute = minute
            self._counts.clear()
        self._counts[user_id] += 1
        return self._counts[user_id] <= MAX_PER_MINUTE

    def _write(self, *, is_last_chance: bool = False) -> bool:
        """Write the collected logins. Return whether some are left."""
        with self._write_lock:
            while self._waiting:
                if not is_last_chance and self._outage.is_waiting:
                    return True
                with self._lock:
                    batch = list(islice(self._waiting, MAX_BATCH_ROWS))
                try:
                    self._logins.add(batch)
                except MlapiError as error:
                    self._handle_error(error)
                    return bool(self._waiting)
                self._forget(len(batch))
                self._end_outage()
            return False

    def _forget(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                self._waiting.popleft()

    def _handle_error(self, error: MlapiError) -> None:
        is_read_only = isinstance(error, ReadOnlyRepositoryError)
        if self._outage.begin(error, retry_seconds=RETRY_SECONDS):
            plan = "which are dropped until this account may write" if is_read_only else "and will retry"
            _logger.warning("cannot record logins, %s: %s", plan, error)
        if is_read_only:
            with self._lock:
                self._waiting.clear()

    def _end_outage(self) -> None:
        if self._outage.error is not None:
            _logger.info("logins are recorded again")
        self._outage = Outage()
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            _logger.warning("%d logins were not recorded: too many were waiting for the database", dropped)


class PreparedLogins:
    """`Logins` that run a `Preparation` before each call, until it has succeeded."""

    def __init__(self, logins: Logins, preparation: Preparation) -> None:
        self._logins = logins
        self._preparation = preparation

    def add(self, logins: Sequence[Login]) -> None:
        self._preparation.ensure()
        self._logins.add(logins)

    def list_recent(self, user_id: UserId, *, limit: int) -> list[Login]:
        self._preparation.ensure()
        return self._logins.list_recent(user_id, limit=limit)

    def purge(self, *, before: datetime, limit: int) -> int:
        self._preparation.ensure()
        return self._logins.purge(before=before, limit=limit)
