"""Read and purge the audit trail. The dialects write its entries, together with each batch of commands."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    Select,
    bindparam,
    func,
    literal_column,
    select,
    text,
    type_coerce,
    union_all,
)

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_text, is_storable_user_id
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.rows import AUDIT_COLUMNS, read_audit_entry
from mlapi.adapters.sql.tables import FREQUENT_ACTORS, RARE_ACTORS_UNFOLDED, audit
from mlapi.domain.audit import EVERY_ENTRY, MAX_CLOCK_DIFFERENCE, Action, AuditEntry, AuditFilter, AuditId, DailyCount
from mlapi.domain.users import MAX_USER_ID, UserId

_DAY = type_coerce(func.date(audit.c.at), Date)
_COUNT_PER_DAY = (
    select(_DAY, audit.c.action, func.count())
    .where(audit.c.at >= bindparam("since"), audit.c.outcome == "done")
    .group_by(_DAY, audit.c.action)
    .order_by(_DAY, audit.c.action)
)
_PURGE = purge_statement(audit, audit.c.at < bindparam("before"), audit.c.at, audit.c.id)
_NEWEST_BEFORE = select(audit.c.id).where(audit.c.at < bindparam("time")).order_by(audit.c.at.desc(), audit.c.id.desc())
_OLDEST_FROM = select(audit.c.id).where(audit.c.at >= bindparam("time")).order_by(audit.c.at, audit.c.id)
_IS_UNFOLDED = audit.c.bulk_id == literal_column("''")


class SqlAuditTrail:
    """An `AuditTrail` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_page(
        self,
        *,
        after: AuditId | None = None,
        newer_than: AuditId | None = None,
        limit: int,
        matching: AuditFilter = EVERY_ENTRY,
    ) -> list[AuditEntry]:
        if not _is_possible(matching):
            return []
        conditions = list(_conditions(matching))
        if after is not None:
            conditions.append(audit.c.id < min(after, MAX_USER_ID))
        if newer_than is not None:
            conditions.append(audit.c.id > min(newer_than, MAX_USER_ID))

        def read(connection: Connection) -> Sequence[Any]:
            bounds = _find_bounds(connection, matching)
            page = _page([*conditions, *bounds], matching, limit, ascending=newer_than is not None)
            return connection.execute(page).all()

        entries = [read_audit_entry(row) for row in self._database.browse(read)]
        return entries if newer_than is None else entries[::-1]

    def count_bulk(self, bulk_ids: Sequence[str], *, limit: int) -> list[int]:
        if not bulk_ids:
            return []
        found = (select(audit.c.id).where(audit.c.bulk_id == bulk_id).limit(limit).subquery() for bulk_id in bulk_ids)
        counts = select(*(select(func.count()).select_from(entries).scalar_subquery() for entries in found))
        return list(self._database.browse(lambda connection: connection.execute(counts).one()))

    def find_removals(self, user_ids: Sequence[UserId]) -> list[AuditEntry]:
        storable = [user_id for user_id in user_ids if is_storable_user_id(user_id)]
        if not storable:
            return []
        found = select(*AUDIT_COLUMNS).where(
            audit.c.user_id.in_(storable), audit.c.action == "remove", audit.c.outcome == "done"
        )
        rows = self._database.browse(lambda connection: connection.execute(found).all())
        return [read_audit_entry(row) for row in rows]

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        rows = self._database.browse(lambda connection: connection.execute(_COUNT_PER_DAY, {"since": since}).all())
        return [DailyCount(*row) for row in rows]

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})


def _is_possible(matching: AuditFilter) -> bool:
    """Return whether the database can store an entry that matches."""
    is_storable = is_storable_text((matching.actor or "") + (matching.bulk_id or ""))
    return is_storable and (matching.user_id is None or is_storable_user_id(matching.user_id))


def _conditions(matching: AuditFilter) -> Iterator[ColumnElement[bool]]:
    if matching.user_id is not None:
        yield audit.c.user_id == matching.user_id
    if matching.action is not None:
        yield audit.c.action == matching.action
    if matching.actor is not None:
        yield audit.c.actor == matching.actor
    if matching.since is not None:
        yield audit.c.at >= matching.since
    if matching.until is not None:
        yield audit.c.at < matching.until
    if matching.bulk_id is not None:
        yield audit.c.bulk_id == matching.bulk_id
    if matching.is_folded:
        yield _IS_UNFOLDED


def _page(
    conditions: Sequence[ColumnElement[bool]], matching: AuditFilter, limit: int, *, ascending: bool
) -> Select[Any]:
    """Return a query for the page. If no index fits the filter, combine one indexed query for each action."""
    order = audit.c.id.asc() if ascending else audit.c.id.desc()
    query = select(*AUDIT_COLUMNS).where(*conditions)
    if matching.actor is not None and matching.is_folded and matching.actor not in FREQUENT_ACTORS:
        query = query.where(text(RARE_ACTORS_UNFOLDED))
    elif (matching.is_folded or matching.bulk_id) and matching.action is None and matching.user_id is None:
        pages = (query.where(audit.c.action == action).order_by(order).limit(limit) for action in get_args(Action))
        union = union_all(*(select(page.subquery()) for page in pages)).subquery()
        return select(union).order_by(union.c.id.asc() if ascending else union.c.id.desc()).limit(limit)
    return query.order_by(order).limit(limit)


def _find_bounds(connection: Connection, matching: AuditFilter) -> Iterator[ColumnElement[bool]]:
    """Yield conditions for the ids, because pages are sorted by id, not by time."""
    if matching.since is not None:
        before = _shift(matching.since, -MAX_CLOCK_DIFFERENCE)
        if (newest := connection.scalar(_NEWEST_BEFORE.limit(1), {"time": before})) is not None:
            yield audit.c.id > newest
    if matching.until is not None:
        later = _shift(matching.until, MAX_CLOCK_DIFFERENCE)
        if (oldest := connection.scalar(_OLDEST_FROM.limit(1), {"time": later})) is not None:
            yield audit.c.id < oldest


def _shift(time: datetime, difference: timedelta) -> datetime:
    """Return the sum, or the unchanged time if the sum is outside the years 1 to 9999."""
    try:
        return time + difference
    except OverflowError:
        return time
