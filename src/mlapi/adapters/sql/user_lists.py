"""Queries for sorted and filtered lists of users, and for the number of users."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    false,
    func,
    or_,
    select,
    true,
    tuple_,
)

from mlapi.adapters.sql.dialect import Dialect
from mlapi.adapters.sql.principals import is_storable_text
from mlapi.adapters.sql.rows import USER_COLUMNS, read_user
from mlapi.adapters.sql.tables import activity, users
from mlapi.domain.lists import ListedUser, ListPosition, month_of
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import User, UserId, UserOrder

MAX_SORTED_USERS = 5_000
"""If an index shows that a filter matches at most so many users, SQLite reads and sorts them. Otherwise it reads the
users in the order of the list until the page is full. For this number of users, both take about as long."""

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

Condition = ColumnElement[bool]


@attrs.frozen
class IndexedCondition:
    """A condition of a filter that an index supports, and the order in which the index has the users, if any."""

    condition: Condition
    order: UserOrder | None = None


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
        """Return whether the users of each part of the list have a value. Those without one come last."""
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
        page = (
            select(*USER_COLUMNS, *(_ACTIVITY if by_activity else ()))
            .where(*self._conditions(leading, has_value=has_value))
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

    def _conditions(self, leading: IndexedCondition | None, *, has_value: bool) -> Iterator[Condition]:
        if leading is not None:
            yield leading.condition
        yield from filter_conditions(
            self.matching,
            self.dialect,
            self._hide if self.dialect.plans_by_order and self.order != "expires" else _show,
            has_expiry=has_value if self.order == "expires" else None,
        )
        if self.order == "expires":
            end = users.c.expires_datetime
            yield end.is_not(None) if has_value else end.is_(None)
        if self.order in _WITH_ACTIVITY:
            is_counted: Condition = true()
            if self.order == "usage":
                month = month_of(self.matching.state_time)
                is_counted = and_(activity.c.month == month, activity.c.requests > 0)
            yield is_counted if has_value else ~exists().where(activity.c.user_id == users.c.id, is_counted)

    def _hide(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return self.dialect.without_index(column)

    def _find_leading_condition(self, connection: Connection) -> IndexedCondition | None:
        """Return the condition whose index to read, or None to read the users in the order of the list.

        SQLite chooses an index without knowing how many users a condition matches.
        """
        indexed = list(_indexed_conditions(self.matching, self.dialect))
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


def _show(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return column


def filter_conditions(
    matching: UserFilter,
    dialect: Dialect[Any],
    hide: Callable[[ColumnElement[Any]], ColumnElement[Any]] = _show,
    *,
    has_expiry: bool | None = None,
) -> Iterator[Condition]:
    """Yield the conditions for a filter.

    Args:
        matching: the filter.
        dialect: the kind of database.
        hide: applied to the columns of indexes that should not be read.
        has_expiry: whether all users of the query have an expiry, or none has one. None if unknown.
    """
    if matching.enabled is not None:
        yield hide(users.c.enabled).is_(matching.enabled)
    if matching.state is not None:
        yield from _state_conditions(matching, dialect, hide, has_expiry=has_expiry)
    if matching.expires_before is not None:
        yield hide(users.c.expires_datetime) < matching.expires_before
    if matching.plans is not None:
        yield from _plan_conditions(matching.plans, hide(users.c.plan))
    if matching.metadata is not None:
        key, text = matching.metadata
        yield dialect.has_metadata(key, text) if is_storable_text(key + text) else false()
    if matching.email is not None:
        yield dialect.has_email(matching.email) if is_storable_text(matching.email) else false()
    if not is_storable_text(matching.containing):
        yield false()
    elif matching.containing:
        yield or_(
            users.c.username_key.contains(matching.containing, autoescape=True),
            func.lower(users.c.email).contains(matching.containing, autoescape=True),
        )


def _state_conditions(
    matching: UserFilter,
    dialect: Dialect[Any],
    hide: Callable[[ColumnElement[Any]], ColumnElement[Any]],
    *,
    has_expiry: bool | None,
) -> Iterator[Condition]:
    enabled, end, at = hide(users.c.enabled), hide(users.c.expires_datetime), matching.state_time
    if matching.state in {"disabled", "pending"}:
        yield enabled.is_(False)
        yield dialect.is_disabled()
        yield users.c.pending.is_(None) if matching.state == "disabled" else hide(users.c.pending).is_not(None)
        return
    yield enabled.is_(True)
    if matching.state == "expired":
        yield end <= at
    elif has_expiry is None:
        yield or_(end.is_(None), end > at)
    elif has_expiry:
        yield end > at


def _plan_conditions(plans: frozenset[str | None], column: ColumnElement[Any]) -> Iterator[Condition]:
    names = sorted(plan for plan in plans if plan is not None and is_storable_text(plan))
    has_name = column == names[0] if len(names) == 1 else column.in_(names)
    yield or_(has_name, column.is_(None)) if None in plans else has_name


def _indexed_conditions(matching: UserFilter, dialect: Dialect[Any]) -> Iterator[IndexedCondition]:
    """Yield the conditions of a filter that SQLite's indexes support."""
    if matching.email is not None and is_storable_text(matching.email):
        yield IndexedCondition(dialect.has_email(matching.email))
    if matching.state == "pending":
        yield IndexedCondition(users.c.pending.is_not(None), "created")
    elif matching.state == "disabled" or matching.enabled is False:
        yield IndexedCondition(users.c.enabled.is_(False), "created")
    elif matching.state == "expired":
        yield IndexedCondition(users.c.expires_datetime <= matching.state_time, "expires")
    if matching.expires_before is not None:
        yield IndexedCondition(users.c.expires_datetime < matching.expires_before, "expires")
    if matching.plans is not None and None not in matching.plans:
        order: UserOrder | None = "created" if len(matching.plans) == 1 else None
        for condition in _plan_conditions(matching.plans, users.c.plan):
            yield IndexedCondition(condition, order)


def count(connection: Connection, matching: UserFilter, dialect: Dialect[Any], limit: int | None) -> int:
    """Return the number of users that match, or ``limit`` if there are more."""
    found = select(users.c.id).where(*filter_conditions(matching, dialect))
    counted = found if limit is None else found.limit(limit)
    return connection.scalar(select(func.count()).select_from(counted.subquery())) or 0
