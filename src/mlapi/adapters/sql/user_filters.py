"""The conditions of a filter for users."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import ColumnElement, Connection, and_, false, func, or_, select

from mlapi.adapters.sql.dialect import Dialect
from mlapi.adapters.sql.principals import is_storable_text
from mlapi.adapters.sql.tables import users
from mlapi.domain.rules import UserFilter
from mlapi.domain.users import UserOrder

Condition = ColumnElement[bool]


@attrs.frozen(kw_only=True)
class FilterColumns:
    """The columns in the conditions. `Dialect.without_index` may hide their indexes from the database."""

    enabled: ColumnElement[Any]
    pending: ColumnElement[Any]
    plan: ColumnElement[Any]
    expires: ColumnElement[Any]


COLUMNS = FilterColumns(
    enabled=users.c.enabled, pending=users.c.pending, plan=users.c.plan, expires=users.c.expires_datetime
)


@attrs.frozen
class Expiry:
    """What a query already guarantees about the expiry of its users.

    Redundant conditions are omitted: with a second bound on the expiry, the database may read all rows before the page.

    Attributes:
        has_value: whether all users have an expiry, or none has one. None if unknown.
        earliest: no user has an earlier one.
        latest: no user has a later one.
    """

    has_value: bool | None = None
    earliest: datetime | None = None
    latest: datetime | None = None


@attrs.frozen
class IndexedCondition:
    """A condition of a filter that an index supports, and the order in which the index has the users, if any."""

    condition: Condition
    order: UserOrder | None = None


def filter_conditions(
    matching: UserFilter,
    dialect: Dialect[Any],
    columns: FilterColumns = COLUMNS,
    known: Expiry = Expiry(),
) -> Iterator[Condition]:
    """Yield the conditions for a filter."""
    if matching.enabled is not None:
        yield columns.enabled.is_(True) if matching.enabled else dialect.is_disabled(columns.enabled)
    if matching.state in {"disabled", "pending"}:
        yield dialect.is_disabled(columns.enabled)
        yield columns.pending.is_(None) if matching.state == "disabled" else columns.pending.is_not(None)
    elif matching.state is not None:
        yield columns.enabled.is_(True)
        yield from _expiry_conditions(matching, columns.expires, known)
    before = matching.expires_before
    if before is not None and (known.latest is None or known.latest >= before):
        yield columns.expires < before
    if matching.plans is not None:
        yield _has_plan(matching.plans, columns.plan)
    if matching.metadata is not None:
        key, text = matching.metadata
        yield dialect.has_metadata(key, text) if is_storable_text(key + text) else false()
    if matching.email is not None:
        yield dialect.has_email(matching.email) if is_storable_text(matching.email) else false()
    if matching.containing:
        yield _contains(matching.containing)


def _expiry_conditions(matching: UserFilter, end: ColumnElement[Any], known: Expiry) -> Iterator[Condition]:
    at = matching.state_time
    if matching.state == "expired":
        if known.latest is None or known.latest > at:
            yield end <= at
    elif known.has_value is None and matching.expires_before is None:
        yield or_(end.is_(None), end > at)
    elif known.has_value is not False and (known.earliest is None or known.earliest <= at):
        yield end > at


def _has_plan(plans: frozenset[str | None], column: ColumnElement[Any]) -> Condition:
    names = sorted(plan for plan in plans if plan is not None and is_storable_text(plan))
    has_name: Condition = column == names[0] if len(names) == 1 else column.in_(names)
    return or_(has_name, column.is_(None)) if None in plans else has_name


def _contains(text: str) -> Condition:
    if not is_storable_text(text):
        return false()
    return or_(
        users.c.username_key.contains(text, autoescape=True),
        func.lower(users.c.email).contains(text, autoescape=True),
    )


def indexed_conditions(matching: UserFilter, dialect: Dialect[Any]) -> Iterator[IndexedCondition]:
    """Yield the conditions of a filter that the indexes of SQLite support."""
    if matching.email is not None and is_storable_text(matching.email):
        yield IndexedCondition(dialect.has_email(matching.email))
    if matching.state == "pending":
        yield IndexedCondition(users.c.pending.is_not(None), "created")
    elif matching.state == "disabled" or matching.enabled is False:
        yield IndexedCondition(users.c.enabled.is_(False), "created")
    elif matching.state == "expired":
        yield IndexedCondition(users.c.expires_datetime <= matching.state_time, "expires")
    if matching.expires_before is not None:
        ends_soon = users.c.expires_datetime < matching.expires_before
        if matching.state == "active":  # leave out the users whose access has expired, who may be many
            ends_soon = and_(users.c.expires_datetime > matching.state_time, ends_soon)
        yield IndexedCondition(ends_soon, "expires")
    if matching.plans is not None and None not in matching.plans:
        yield IndexedCondition(_has_plan(matching.plans, users.c.plan), "created" if len(matching.plans) == 1 else None)


def count_users(connection: Connection, matching: UserFilter, dialect: Dialect[Any], limit: int | None) -> int:
    """Return the number of users that match, or ``limit`` if there are more."""
    found = select(users.c.id).where(*filter_conditions(matching, dialect))
    counted = found if limit is None else found.limit(limit)
    return connection.scalar(select(func.count()).select_from(counted.subquery())) or 0
