"""Read, add and purge usage."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select, tuple_

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.rows import USAGE_COLUMNS, read_usage
from mlapi.adapters.sql.tables import usage
from mlapi.domain.usage import DailyUsage, UsagePosition, UsageRow, UserTotal
from mlapi.domain.users import MAX_USER_ID, UserId

_POSITION = (usage.c.day, usage.c.user_id, usage.c.key_id)
_PURGE = purge_statement(usage, usage.c.day < bindparam("before"), *_POSITION)

_TOTAL_REQUESTS = func.sum(usage.c.requests)
_TOTAL = (usage.c.user_id, _TOTAL_REQUESTS, func.sum(usage.c.units), func.max(usage.c.seen_datetime))
_LATEST_DAYS = (
    select(usage.c.user_id, func.max(usage.c.day).label("day"))
    .where(usage.c.user_id.in_(bindparam("ids", expanding=True)))
    .group_by(usage.c.user_id)
    .subquery()
)
_LAST_SEEN = (
    select(usage.c.user_id, func.max(usage.c.seen_datetime))
    .join(_LATEST_DAYS, (usage.c.user_id == _LATEST_DAYS.c.user_id) & (usage.c.day == _LATEST_DAYS.c.day))
    .group_by(usage.c.user_id)
)


class SqlUsage:
    """A `UsageRepository` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, rows: Sequence[UsageRow]) -> None:
        dialect = self._database.dialect
        if rows:
            self._database.write_batch(lambda connection: dialect.add_usage(connection, rows))

    def list_page(
        self,
        *,
        first_day: date | None = None,
        last_day: date | None = None,
        user_id: UserId | None = None,
        after: UsagePosition | None = None,
        limit: int,
    ) -> list[UsageRow]:
        if not _may_exist(user_id):
            return []
        if after is not None and (first_day is None or first_day <= after.day):
            # Omit it: SQLite would search by it instead of by the position, and read all rows before the position.
            first_day = None
        page = select(*USAGE_COLUMNS).where(*_conditions(first_day, last_day, user_id)).order_by(*_POSITION)
        if after is not None:
            page = page.where(tuple_(*_POSITION) > (after.day, after.user_id, after.key_id or ""))
        rows = self._database.browse(lambda connection: connection.execute(page.limit(limit)).all())
        return [read_usage(row) for row in rows]

    def sum_per_day(self, *, first_day: date, last_day: date, user_id: UserId | None = None) -> list[DailyUsage]:
        if not _may_exist(user_id):
            return []
        sums = (
            select(usage.c.day, func.sum(usage.c.requests), func.sum(usage.c.units))
            .where(*_conditions(first_day, last_day, user_id))
            .group_by(usage.c.day)
            .order_by(usage.c.day)
        )
        rows = self._database.browse(lambda connection: connection.execute(sums).all())
        return [DailyUsage(day, int(requests), int(units)) for day, requests, units in rows]

    def sum_per_user(
        self,
        *,
        first_day: date,
        last_day: date,
        user_id: UserId | None = None,
        after: UserId | None = None,
        limit: int,
    ) -> list[UserTotal]:
        if not _may_exist(user_id):
            return []
        sums = select(*_TOTAL).where(*_conditions(first_day, last_day, user_id)).group_by(usage.c.user_id)
        if after is not None:
            sums = sums.where(usage.c.user_id > min(after, MAX_USER_ID))
        return self._read_totals(sums.order_by(usage.c.user_id).limit(limit))

    def list_top_users(self, *, first_day: date, last_day: date, limit: int) -> list[UserTotal]:
        sums = select(*_TOTAL).where(*_conditions(first_day, last_day, None)).group_by(usage.c.user_id)
        return self._read_totals(sums.order_by(_TOTAL_REQUESTS.desc(), usage.c.user_id).limit(limit))

    def _read_totals(self, sums: Select[Any]) -> list[UserTotal]:
        rows = self._database.browse(lambda connection: connection.execute(sums).all())
        return [UserTotal(UserId(user_id), int(requests), int(units), seen) for user_id, requests, units, seen in rows]

    def last_seen(self, user_ids: Sequence[UserId]) -> dict[UserId, datetime]:
        ids = [user_id for user_id in user_ids if is_storable_user_id(user_id)]
        rows = self._database.browse(lambda connection: connection.execute(_LAST_SEEN, {"ids": ids}).all())
        return {UserId(user_id): seen for user_id, seen in rows}

    def purge(self, *, before: date, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})


def _may_exist(user_id: UserId | None) -> bool:
    return user_id is None or is_storable_user_id(user_id)


def _conditions(first_day: date | None, last_day: date | None, user_id: UserId | None) -> list[ColumnElement[Any]]:
    conditions: list[ColumnElement[Any]] = []
    if first_day is not None:
        conditions.append(usage.c.day >= first_day)
    if last_day is not None:
        conditions.append(usage.c.day <= last_day)
    if user_id is not None:
        conditions.append(usage.c.user_id == user_id)
    return conditions
