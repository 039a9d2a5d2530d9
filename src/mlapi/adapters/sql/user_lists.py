"""Queries for sorted lists of users."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import Column, ColumnElement, Connection, Select, and_, bindparam, exists, func, select, true, tuple_

from mlapi.adapters.sql.dialect import Dialect
from mlapi.adapters.sql.rows import USER_COLUMNS, read_user
from mlapi.adapters.sql.tables import activity, users
from mlapi.adapters.sql.user_filters import (
    COLUMNS,
    Condition,
    Expiry,
    FilterColumns,
    IndexedCondition,
    filter_conditions,
    indexed_conditions,
)
from mlapi.domain.lists import ListedUser, ListPosition, month_of
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import User, UserId, UserOrder

MAX_SORTED_USERS = 5_000
"""If an indexed filter matches at most this many users, SQLite reads and sorts them. Otherwise, it reads the users in
the order of the list until the page is full. At this number, both take about the same time."""

_ACTIVITY = (activity.c.seen_datetime, activity.c.month, activity.c.requests)
_ACTIVITY_OF = select(activity.c.user_id, *_ACTIVITY).where(activity.c.user_id.in_(bindparam("ids", expanding=True)))
_VALUES: dict[UserOrder, Column[Any]] = {
    "id": users.c.id,
    "name": users.c.username_key,
    "created": users.c.created_datetime,
    "updated": users.c.updated_datetime,
    "expires": users.c.expires_datetime,
    "seen": activity.c.seen_datetime,
    "usage": activity.c.requests,
}
_WITH_ACTIVITY: frozenset[UserOrder] = frozenset({"seen", "usage"})


@attrs.frozen(kw_only=True)
class ListQuery:
    """The order and the filter of a list.

    Args:
        dialect: the kind of database.
        order: see `UserRepository.list_sorted`.
        descending: see `UserRepository.list_sorted`.
        matching: selects the users.
    """

    dialect: Dialect[Any]
    order: UserOrder
    descending: bool = False
    matching: UserFilter

    def read_listed(
        self, connection: Connection, *, after: ListPosition | None, before: ListPosition | None, limit: int
    ) -> list[ListedUser]:
        """Return a page of users with their activity. See `UserRepository.list_sorted`."""
        rows = self._read_rows(connection, after=after, before=before, limit=limit)
        others = [user.id for user, row in rows if row is None]
        found = connection.execute(_ACTIVITY_OF, {"ids": others}).all() if others else []
        activity_of = {UserId(row[0]): row[1:] for row in found}
        return [self._listed(user, activity_of.get(user.id) if row is None else row) for user, row in rows]

    def read_users(self, connection: Connection, *, after: ListPosition | None, limit: int) -> list[User]:
        """Return a page of users without their activity."""
        return [user for user, _ in self._read_rows(connection, after=after, before=None, limit=limit)]

    def _read_rows(
        self, connection: Connection, *, after: ListPosition | None, before: ListPosition | None, limit: int
    ) -> list[tuple[User, Sequence[Any] | None]]:
        """Return a page of users, each with the values of `_ACTIVITY` if the list is sorted by them."""
        position, backward = (after, False) if before is None else (before, True)
        leading = self._find_leading_condition(connection) if self.dialect.plans_by_order else None
        found: list[tuple[User, Sequence[Any] | None]] = []
        for has_value in self._parts(position, backward=backward):
            start = position if position is not None and has_value == (position.value is not None) else None
            page = self._select(leading, start, has_value=has_value, backward=backward).limit(limit - len(found))
            width = len(USER_COLUMNS)
            found += [(read_user(row[:width]), row[width:] or None) for row in connection.execute(page).all()]
            if len(found) == limit:
                break
        return found[::-1] if backward else found

    def _parts(self, position: ListPosition | None, *, backward: bool) -> Sequence[bool]:
        """Return, for each part of the list to read, whether its users have a value. Those without one come last."""
        if self.order not in {"expires", *_WITH_ACTIVITY}:
            return [True]
        if self.order == "expires" and (self.matching.state == "expired" or self.matching.expires_before is not None):
            return [True]
        is_in_last = position is not None and position.value is None
        if backward:
            return [False, True] if is_in_last else [True]
        return [False] if is_in_last else [True, False]

    def _select(
        self, leading: IndexedCondition | None, start: ListPosition | None, *, has_value: bool, backward: bool
    ) -> Select[Any]:
        is_reversed = self.descending != backward
        by_activity = has_value and self.order in _WITH_ACTIVITY
        user_id = activity.c.user_id if by_activity else users.c.id
        keys = [_VALUES[self.order], user_id] if has_value and self.order != "id" else [user_id]
        sorts = leading is not None and (leading.order != self.order or not has_value)
        hidden = [self._hide(key) for key in keys] if sorts else keys
        known = self._known_expiry(start, has_value=has_value, is_reversed=is_reversed)
        is_counted = self._has_usage(start, is_reversed=is_reversed, by_user=sorts or not has_value)
        page = (
            select(*USER_COLUMNS, *(_ACTIVITY if by_activity else ()))
            .where(*self._conditions(leading, known, has_value=has_value, sorts=sorts, is_counted=is_counted))
            .order_by(*(key.desc() if is_reversed else key for key in hidden))
        )
        if by_activity and sorts:  # look up the activity of each user
            page = page.where(activity.c.user_id == self._hide(users.c.id))
        elif by_activity:  # look up the user of each activity
            page = page.where(users.c.id == self._hide(activity.c.user_id))
        if start is not None:
            values = (start.value, start.user_id) if len(keys) > 1 else (start.user_id,)
            page = page.where(tuple_(*hidden) < values if is_reversed else tuple_(*hidden) > values)
        return page

    def _conditions(
        self, leading: IndexedCondition | None, known: Expiry, *, has_value: bool, sorts: bool, is_counted: Condition
    ) -> Iterator[Condition]:
        reads_by_expiry = self.order == "expires" and has_value and not sorts
        if leading is not None and not (reads_by_expiry and leading.order == "expires"):
            yield leading.condition
        columns = self._filter_columns(reads_by_expiry=reads_by_expiry)
        yield from filter_conditions(self.matching, self.dialect, columns, known)
        if self.order == "expires":
            yield columns.expires.is_not(None) if has_value else columns.expires.is_(None)
        if self.order in _WITH_ACTIVITY:
            yield is_counted if has_value else ~exists().where(activity.c.user_id == users.c.id, is_counted)

    def _filter_columns(self, *, reads_by_expiry: bool) -> FilterColumns:
        if not self.dialect.plans_by_order:
            return COLUMNS
        return FilterColumns(
            enabled=self._hide(users.c.enabled),
            pending=self._hide(users.c.pending),
            plan=self._hide(users.c.plan),
            expires=users.c.expires_datetime if reads_by_expiry else self._hide(users.c.expires_datetime),
        )

    def _known_expiry(self, start: ListPosition | None, *, has_value: bool, is_reversed: bool) -> Expiry:
        """Return what the order of the list guarantees about the expiry of the users in this part."""
        if self.order != "expires":
            return Expiry()
        bound = start.value if start is not None and isinstance(start.value, datetime) else None
        return Expiry(has_value, **{"latest" if is_reversed else "earliest": bound})

    def _has_usage(self, start: ListPosition | None, *, is_reversed: bool, by_user: bool) -> Condition:
        """Return the condition for activity that this list shows. ``by_user``: look it up by user, not by month."""
        if self.order == "seen":
            return true()
        month: ColumnElement[int] = activity.c.month
        requests: ColumnElement[int] = activity.c.requests
        if by_user:
            month, requests = self._hide(month), self._hide(requests)
        in_month = month == month_of(self.matching.state_time)
        # With a second lower bound, the database would not start reading at the position.
        starts_later = start is not None and start.value is not None and not is_reversed
        return in_month if starts_later else and_(in_month, requests > 0)

    def _hide(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return self.dialect.without_index(column)

    def _find_leading_condition(self, connection: Connection) -> IndexedCondition | None:
        """Return the condition whose index to read, or None to read the users in the order of the list.

        SQLite chooses an index without knowing how many users a condition matches.
        """
        indexed = list(indexed_conditions(self.matching, self.dialect))
        for each in indexed:
            some = select(users.c.id).where(each.condition).limit(MAX_SORTED_USERS + 1).subquery()
            if (connection.scalar(select(func.count()).select_from(some)) or 0) <= MAX_SORTED_USERS:
                return each
        return next((each for each in indexed if each.order == self.order), None)

    def _listed(self, user: User, row: Sequence[Any] | None) -> ListedUser:
        if row is None:
            return ListedUser(user)
        seen, month, requests = row
        return ListedUser(user, seen, requests if month == month_of(self.matching.state_time) else 0)
