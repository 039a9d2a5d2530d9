"""Usage in memory."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from itertools import groupby
from operator import attrgetter

from mlapi.domain.lists import ListedUser, month_of
from mlapi.domain.usage import Activity, DailyUsage, UsagePosition, UsageRow, UserTotal
from mlapi.domain.users import MAX_USER_ID, User, UserId
from mlapi.forks import new_lock


class InMemoryUsage:
    """A `UsageRepository` for one process."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._rows: dict[UsagePosition, UsageRow] = {}
        self._activity: dict[UserId, Activity] = {}

    def add(self, rows: Sequence[UsageRow]) -> None:
        with self._lock:
            for row in rows:
                if not 0 < row.user_id <= MAX_USER_ID:
                    continue
                stored = self._rows.get(row.position)
                self._rows[row.position] = row if stored is None else stored.plus(row)
                each, known = Activity.from_row(row), self._activity.get(row.user_id)
                self._activity[row.user_id] = each if known is None else known.plus(each)

    def list_activity(self, users: Sequence[User], at: datetime) -> list[ListedUser]:
        """Return the time of each user's latest request, and the number of their requests in that month."""
        with self._lock:
            found = [(user, self._activity.get(user.id)) for user in users]
        return [
            ListedUser(user)
            if activity is None
            else ListedUser(user, activity.seen_datetime, activity.requests if activity.month == month_of(at) else 0)
            for user, activity in found
        ]

    def list_page(
        self,
        *,
        first_day: date | None = None,
        last_day: date | None = None,
        user_id: UserId | None = None,
        after: UsagePosition | None = None,
        limit: int,
    ) -> list[UsageRow]:
        found = self._select(first_day or date.min, last_day or date.max, user_id)
        return [row for row in found if after is None or row.position > after][:limit]

    def sum_per_day(self, *, first_day: date, last_day: date, user_id: UserId | None = None) -> list[DailyUsage]:
        by_day = groupby(self._select(first_day, last_day, user_id), attrgetter("day"))
        return [_sum(day, rows) for day, rows in by_day]

    def sum_per_user(
        self,
        *,
        first_day: date,
        last_day: date,
        user_id: UserId | None = None,
        after: UserId | None = None,
        limit: int,
    ) -> list[UserTotal]:
        return [
            total
            for total in self._sum_per_user(first_day, last_day, user_id)
            if after is None or total.user_id > after
        ][:limit]

    def list_top_users(self, *, first_day: date, last_day: date, limit: int) -> list[UserTotal]:
        return sorted(self._sum_per_user(first_day, last_day), key=lambda total: -total.requests)[:limit]

    def last_seen(self, user_ids: Sequence[UserId]) -> dict[UserId, datetime]:
        seen: dict[UserId, datetime] = {}
        for row in self._select(date.min, date.max, None):
            if row.user_id in user_ids:
                seen[row.user_id] = max(seen.get(row.user_id, row.seen_datetime), row.seen_datetime)
        return seen

    def purge(self, *, before: date, limit: int) -> int:
        with self._lock:
            old = [position for position in sorted(self._rows) if position.day < before][:limit]
            for position in old:
                del self._rows[position]
            return len(old)

    def _sum_per_user(self, first_day: date, last_day: date, user_id: UserId | None = None) -> list[UserTotal]:
        by_user: dict[UserId, list[UsageRow]] = {}
        for row in self._select(first_day, last_day, user_id):
            by_user.setdefault(row.user_id, []).append(row)
        return [
            UserTotal(
                found_id,
                sum(row.requests for row in rows),
                sum(row.units for row in rows),
                max(row.seen_datetime for row in rows),
            )
            for found_id, rows in sorted(by_user.items())
        ]

    def _select(self, first_day: date, last_day: date, user_id: UserId | None) -> list[UsageRow]:
        with self._lock:
            return [
                row
                for position, row in sorted(self._rows.items())
                if first_day <= position.day <= last_day and user_id in {None, position.user_id}
            ]


def _sum(day: date, rows: Iterator[UsageRow]) -> DailyUsage:
    listed = list(rows)
    return DailyUsage(day, sum(row.requests for row in listed), sum(row.units for row in listed))
