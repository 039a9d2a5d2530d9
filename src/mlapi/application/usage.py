"""Record usage in the background, so that no request waits for a write or fails because of one."""

import logging
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime
from itertools import islice
from typing import final

import attrs

from mlapi.application.background import Outage, WriterThread
from mlapi.domain.commands import RecordApiKeyUse
from mlapi.domain.credentials import USE_RECORDING_INTERVAL, ApiKey, ApiKeyId
from mlapi.domain.errors import MlapiError, ReadOnlyRepositoryError, RepositoryUnavailableError
from mlapi.domain.ports import PrincipalRepository
from mlapi.domain.usage import MAX_COUNT, UsageRow, UsageWriter
from mlapi.domain.users import UserId, to_utc
from mlapi.forks import call_in_children, new_lock, notice_fork

INTERVAL_SECONDS = 0.8
"""How long usage is collected before it is written. With the time of the write, a crash loses about a second."""
RETRY_SECONDS = 5.0
READ_ONLY_RETRY_SECONDS = 60.0
"""A guard with a read-only database account can never write."""
CLOSING_SECONDS = 5.0
"""How long `BackgroundUsage.close` retries if the database has just become unavailable."""
_CLOSING_RETRY_SECONDS = 0.2
MAX_ROWS = 100_000
"""Maximum number of rows that are kept while the database is unavailable. They take about 40 MB of memory."""
MAX_BATCH_ROWS = 5000
"""Maximum number of rows written in one transaction, which takes about 50 ms."""

_logger = logging.getLogger("mlapi")

_Key = tuple[int, UserId, ApiKeyId | None]
"""The day, as the number that `date.toordinal` returns, the user and the API key."""


@attrs.define(eq=False)
class _Count:
    """The requests and units of a row that has not been written yet."""

    requests: int
    units: int
    seen_datetime: datetime

    def add(self, requests: int, units: int, at: datetime) -> None:
        self.requests += requests
        self.units += units
        self.seen_datetime = max(self.seen_datetime, at)


@final
class BackgroundUsage:
    """A `UsageRecorder` that collects usage and the last use of API keys, and writes both from one thread.

    It adds up usage per day, user and API key in memory, and writes it about once a second. If a write fails, it keeps
    the rows and writes them later. It drops rows and logs a warning in three cases:

    - The account may only read the database.
    - The connection was lost during the commit: writing the rows again could count them twice.
    - `MAX_ROWS` rows are waiting: it drops further rows until the database is available again.

    Close it to write the remaining rows. If you do not close it, it writes them when the process exits, unless the
    process is killed.

    Args:
        usage: stores the usage.
        keys: stores the last use of API keys.
        interval_seconds: how long to collect usage before writing it.
    """

    def __init__(
        self, usage: UsageWriter, keys: PrincipalRepository, *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._usage = usage
        self._keys = keys
        self._lock = new_lock()
        self._write_lock = new_lock()
        self._initialize()
        call_in_children(self._initialize)
        self._thread = WriterThread(self._write, self.close, name="mlapi-usage", interval_seconds=interval_seconds)

    def _initialize(self) -> None:
        """Start empty. After a fork, the parent writes the usage that it has collected."""
        self._counts: dict[_Key, _Count] = {}
        self._uses: dict[ApiKeyId, datetime] = {}
        # When each key's use was last written, on the clock of `time.monotonic`. Readers may still see the older row
        # for a while.
        self._uses_written_at: dict[ApiKeyId, float] = {}
        self._dropped_requests = 0
        # The rows that are due to be written. Only the holder of the write lock changes them.
        self._due: dict[_Key, _Count] = {}
        self._usage_outage, self._uses_outage = Outage(), Outage()

    def record(self, user_id: UserId, key_id: ApiKeyId | None, at: datetime, requests: int = 1, units: int = 0) -> None:
        if at.tzinfo is not UTC:
            at = to_utc(at)
        key = at.toordinal(), user_id, key_id
        with self._lock:
            count = self._counts.get(key)
            if count is not None:  # the same as `count.add`, without the cost of a call
                count.requests += requests
                count.units += units
                if at > count.seen_datetime:  # noqa: PLR1730 - faster than `max`
                    count.seen_datetime = at
            elif len(self._counts) + len(self._due) < MAX_ROWS:
                self._counts[key] = _Count(requests, units, at)
                self._thread.wake()
            else:
                self._dropped_requests += requests

    def record_key_use(self, key: ApiKey, at: datetime) -> None:
        with self._lock:
            if not _is_recent(self._uses_written_at.get(key.id, float("-inf")), time.monotonic()):
                self._uses[key.id] = at
                self._thread.wake()

    def close(self) -> None:
        """Write the remaining rows, and return when they are stored. Retry for a few seconds, but not in an outage."""
        self._thread.stop()
        give_up_at = time.monotonic() + (CLOSING_SECONDS if self._usage_outage.error is None else 0)
        self._write(is_last_chance=True)
        while self._due and time.monotonic() < give_up_at:
            time.sleep(_CLOSING_RETRY_SECONDS)
            self._write(is_last_chance=True)
        if self._due:
            _logger.warning("%s was lost: %s", _describe(self._due.values()), self._usage_outage.error)
            self._due.clear()
        self._report_dropped()

    def _write(self, *, is_last_chance: bool = False) -> bool:
        """Write the collected rows, and return whether some are left.

        During an outage, write only if a retry is due, or if this is the last chance.
        """
        notice_fork()  # before taking the lock: a noticed fork unlocks it
        with self._write_lock:
            uses = self._collect()
            if is_last_chance or not self._usage_outage.is_waiting:
                self._write_usage()
            elif self._usage_outage.is_permanent:
                self._due.clear()
            if uses and (is_last_chance or not self._uses_outage.is_waiting):
                self._write_uses(uses)
            return bool(self._due)

    def _collect(self) -> dict[ApiKeyId, datetime]:
        """Add the collected rows to the rows that are due. Return the collected uses of API keys."""
        with self._lock:
            counts, self._counts = self._counts, {}
            uses, self._uses = self._uses, {}
            now = time.monotonic()
            recent = {key_id: then for key_id, then in self._uses_written_at.items() if _is_recent(then, now)}
            self._uses_written_at = recent | dict.fromkeys(uses, now)
        for key, count in counts.items():
            if (due := self._due.get(key)) is None:
                self._due[key] = count
            else:
                due.add(count.requests, count.units, count.seen_datetime)
        return uses

    def _write_usage(self) -> None:
        while self._due:
            batch = dict(islice(self._due.items(), MAX_BATCH_ROWS))
            try:
                self._usage.add([_make_row(key, count) for key, count in batch.items()])
            except MlapiError as error:
                self._handle_error(error, batch)
                return
            self._forget(batch)
        if self._usage_outage.error is not None:
            _logger.info("usage is recorded again")
        self._usage_outage = Outage()
        self._report_dropped()

    def _handle_error(self, error: MlapiError, batch: dict[_Key, _Count]) -> None:
        may_be_done = isinstance(error, RepositoryUnavailableError) and error.may_be_done
        is_read_only = isinstance(error, ReadOnlyRepositoryError)
        if self._usage_outage.begin(error, retry_seconds=READ_ONLY_RETRY_SECONDS if is_read_only else RETRY_SECONDS):
            plan = "which is dropped until this account may write" if is_read_only else "and will retry"
            _logger.warning("cannot record usage, %s: %s", plan, error)
        if may_be_done:
            _logger.warning(
                "%s may or may not be recorded, and is not written again: it could be counted twice (%s)",
                _describe(batch.values()),
                error,
            )
            self._forget(batch)
        if self._usage_outage.is_permanent:
            self._due.clear()

    def _forget(self, batch: Iterable[_Key]) -> None:
        for key in batch:
            del self._due[key]

    def _report_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped_requests = self._dropped_requests, 0
        if dropped:
            _logger.warning("usage of %d requests was dropped: too many rows were waiting for the database", dropped)

    def _write_uses(self, uses: dict[ApiKeyId, datetime]) -> None:
        try:
            self._keys.apply([RecordApiKeyUse(key_id=key_id, at=at) for key_id, at in uses.items()])
        except MlapiError as error:
            is_new = self._uses_outage.begin(error, retry_seconds=USE_RECORDING_INTERVAL.total_seconds())
            if is_new and self._usage_outage.error is None:  # otherwise, one warning is enough
                _logger.warning("cannot record when API keys were last used, and will retry every minute: %s", error)
        else:
            self._uses_outage = Outage()


def _make_row(key: _Key, count: _Count) -> UsageRow:
    day, user_id, key_id = key
    return UsageRow(
        day=date.fromordinal(day),
        user_id=user_id,
        key_id=key_id,
        requests=min(count.requests, MAX_COUNT),
        units=min(count.units, MAX_COUNT),
        seen_datetime=count.seen_datetime,
    )


def _describe(counts: Iterable[_Count]) -> str:
    listed = list(counts)
    return (
        f"usage of {sum(count.requests for count in listed)} requests and {sum(count.units for count in listed)} units"
    )


def _is_recent(then: float, now: float) -> bool:
    return now - then < USE_RECORDING_INTERVAL.total_seconds()
