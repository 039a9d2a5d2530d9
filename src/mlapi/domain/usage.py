"""Usage: the requests and units of each user and API key on each day, in UTC.

Usage outlives its user and API key, so it contains their ids but no personal data.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Protocol, Self

import attrs

from mlapi.domain.credentials import ApiKey, ApiKeyId
from mlapi.domain.lists import month_of
from mlapi.domain.users import MAX_USER_ID, UserId, to_utc

MAX_COUNT = 2**53 - 1
"""The largest number of requests or units in a row. Every JSON parser reads it exactly."""

_POSITION = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})\.([0-9]{1,19})(?:\.([0-9a-f]{16}))?", re.ASCII)


@attrs.frozen(order=True)
class UsagePosition:
    """The place of a row in a list: rows are sorted by day, then by user, then by API key.

    The row for requests with tokens comes before those for API keys.

    >>> str(UsagePosition(date(2026, 11, 30), UserId(7), ApiKeyId("00112233445566aa")))
    '2026-11-30.7.00112233445566aa'
    >>> UsagePosition.parse("2026-11-30.7")
    UsagePosition(day=datetime.date(2026, 11, 30), user_id=7, key_id=None)
    """

    day: date
    user_id: UserId
    key_id: ApiKeyId | None = attrs.field(order=lambda key_id: key_id or "")

    def __str__(self) -> str:
        """Return the position as text, for `parse`."""
        return f"{self.day.isoformat()}.{self.user_id}" + ("" if self.key_id is None else f".{self.key_id}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position for a text from a client. The row need not exist.

        Raises:
            ValueError: if the text is not a position.
        """
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("not the position of a row of usage")
        user_id = UserId(min(int(match[2]), MAX_USER_ID))
        return cls(date.fromisoformat(match[1]), user_id, ApiKeyId(match[3]) if match[3] else None)


@attrs.frozen(kw_only=True)
class UsageRow:
    """The usage of a user on one day in UTC, with one API key or with tokens.

    ``key_id`` is None for requests with tokens. ``seen_datetime`` is the time of the latest request. ``requests`` and
    ``units`` are from 0 to `MAX_COUNT`.
    """

    day: date
    user_id: UserId
    key_id: ApiKeyId | None = None
    requests: int
    units: int = 0
    seen_datetime: datetime = attrs.field(converter=to_utc)

    @property
    def position(self) -> UsagePosition:
        return UsagePosition(self.day, self.user_id, self.key_id)

    def plus(self, other: "UsageRow") -> "UsageRow":
        """Return the sum of two rows with the same position."""
        return attrs.evolve(
            self,
            requests=min(self.requests + other.requests, MAX_COUNT),
            units=min(self.units + other.units, MAX_COUNT),
            seen_datetime=max(self.seen_datetime, other.seen_datetime),
        )


@attrs.frozen(kw_only=True)
class Activity:
    """The latest request of a user, and the number of requests in the latest month with requests."""

    user_id: UserId
    seen_datetime: datetime
    month: int
    requests: int

    @classmethod
    def from_row(cls, row: UsageRow) -> Self:
        return cls(
            user_id=row.user_id,
            seen_datetime=row.seen_datetime,
            month=month_of(row.day),
            requests=row.requests,
        )

    def plus(self, other: "Activity") -> "Activity":
        """Return the sum for the same user. Requests of an earlier month are not counted."""
        month = max(self.month, other.month)
        requests = sum(each.requests for each in (self, other) if each.month == month)
        return attrs.evolve(
            self,
            seen_datetime=max(self.seen_datetime, other.seen_datetime),
            month=month,
            requests=min(requests, MAX_COUNT),
        )


def sum_activity(rows: Iterable[UsageRow]) -> list[Activity]:
    """Return the activity in rows of usage: one for each user, sorted by id."""
    found: dict[UserId, Activity] = {}
    for row in rows:
        each = Activity.from_row(row)
        stored = found.get(row.user_id)
        found[row.user_id] = each if stored is None else stored.plus(each)
    return sorted(found.values(), key=lambda each: each.user_id)


@attrs.frozen
class DayRange:
    """The days from ``first`` to ``last``, both included, in UTC."""

    first: date
    last: date

    @property
    def length(self) -> int:
        """The number of days."""
        return (self.last - self.first).days + 1


@attrs.frozen
class DailyUsage:
    """The sum of the requests and units on one day, in UTC."""

    day: date
    requests: int
    units: int


@attrs.frozen
class UserTotal:
    """The sum of the requests and units of one user in a range of days.

    ``seen_datetime`` is the time of the latest request in this range.
    """

    user_id: UserId
    requests: int
    units: int
    seen_datetime: datetime


class UsageWriter(Protocol):
    """The part of a `UsageRepository` that a guard uses."""

    def add(self, rows: Sequence[UsageRow]) -> None:
        """See `UsageRepository.add`. It may raise `ReadOnlyRepositoryError` in a database that it may only read."""
        ...


class UsageRepository(Protocol):
    """Stores the usage of each user and API key on each day.

    Rows are sorted by `UsagePosition`. Removing a user or an API key keeps its usage, so do not declare foreign keys.
    Callers may pass ids of any size: an id that the database cannot store has no usage.

    Every method raises `RepositoryUnavailableError` while the database is unavailable.
    """

    def add(self, rows: Sequence[UsageRow]) -> None:
        """Add the requests and units of each row to the stored row with the same position, in one durable transaction.

        The same transaction adds the rows to the activity that `UserRepository.list_sorted` returns.

        The stored row keeps the later ``seen_datetime``. A sum above `MAX_COUNT` is stored as `MAX_COUNT`. Concurrent
        calls do not lose each other's counts, and do not deadlock.

        If it raises, nothing was added, unless the connection was lost during the commit: then the error's
        ``may_be_done`` is True.

        Args:
            rows: rows with different positions, in any order. The list may be empty or contain several thousand rows.

        Raises:
            ReadOnlyRepositoryError: if the account may only read the database.
        """
        ...

    def list_page(
        self,
        *,
        first_day: date | None = None,
        last_day: date | None = None,
        user_id: UserId | None = None,
        after: UsagePosition | None = None,
        limit: int,
    ) -> list[UsageRow]:
        """Return a page of rows, sorted by position. Use an index.

        Args:
            first_day: return no earlier days; None for no bound.
            last_day: return no later days; None for no bound.
            user_id: return only the usage of this user, who may have been removed. None returns the usage of all users.
            after: the position of the last row of the previous page; None for the first page. The row may have been
                deleted since.
            limit: maximum number of rows to return. Only the last page may contain fewer.
        """
        ...

    def sum_per_day(self, *, first_day: date, last_day: date, user_id: UserId | None = None) -> list[DailyUsage]:
        """Return the sum for each day, sorted by day. Days without usage are omitted.

        See `list_page` for the arguments.
        """
        ...

    def sum_per_user(
        self,
        *,
        first_day: date,
        last_day: date,
        user_id: UserId | None = None,
        after: UserId | None = None,
        limit: int,
    ) -> list[UserTotal]:
        """Return a page of the sums for each user, sorted by user id. Users without usage are omitted.

        Args:
            first_day: see `list_page`.
            last_day: see `list_page`.
            user_id: return only the sum for this user.
            after: the last user id of the previous page; None for the first page.
            limit: maximum number of sums to return. Only the last page may contain fewer.
        """
        ...

    def list_top_users(self, *, first_day: date, last_day: date, limit: int) -> list[UserTotal]:
        """Return the sums for the users with the most requests, the largest number first.

        Users with the same number of requests are sorted by id.
        """
        ...

    def last_seen(self, user_ids: Sequence[UserId]) -> dict[UserId, datetime]:
        """Return the time of the latest request of each user. Users without usage are omitted."""
        ...

    def purge(self, *, before: date, limit: int) -> int:
        """Delete at most ``limit`` rows of days earlier than ``before``. Return how many were deleted."""
        ...


class UsageRecorder(Protocol):
    """Records usage. Its methods take microseconds and can be called from any thread.

    They never raise an error or wait for the database: a request succeeds even if its usage cannot be stored.
    """

    def record(self, user_id: UserId, key_id: ApiKeyId | None, at: datetime, requests: int = 1, units: int = 0) -> None:
        """Add requests and units to the usage of a user.

        Args:
            user_id: the user.
            key_id: the API key of the request; None for a token.
            at: the time when the request was admitted. It counts on this day in UTC.
            requests: at least 0.
            units: at least 0. To charge units after the request has been counted, pass ``requests=0``.
        """
        ...

    def record_key_use(self, key: ApiKey, at: datetime) -> None:
        """Record that an API key was used. Call this once per `mlapi.domain.credentials.USE_RECORDING_INTERVAL`."""
        ...
