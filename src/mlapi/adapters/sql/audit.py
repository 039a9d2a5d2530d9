"""Read and purge the audit trail. The dialects write its entries, together with each batch of commands."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
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
from mlapi.adapters.sql.tables import (
    AUDIT_BUCKET,
    AUDIT_BUCKET_BITS,
    AUDIT_REMOVALS,
    FREQUENT_ACTORS,
    RARE_ACTORS_UNFOLDED,
    audit,
)
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
_FIRST_BUCKET, _LAST_BUCKET = bindparam("first_bucket", type_=BigInteger), bindparam("last_bucket", type_=BigInteger)
_LOWER_BUCKETS = select(_FIRST_BUCKET.label("number")).cte("buckets", recursive=True)
_BUCKETS = _LOWER_BUCKETS.union_all(
    select(_LOWER_BUCKETS.c.number + literal_column("1")).where(_LOWER_BUCKETS.c.number < _LAST_BUCKET)
)
_BUCKET_COUNT_GROWTH = 8
_MAX_BUCKETS = 512
"""For one query. The next one starts at the nearest entry, so that large gaps between ids are not searched."""

Hide = Callable[[ColumnElement[Any]], ColumnElement[Any]]
"""Hides the indexes of a column from the database. See `Dialect.without_index`."""


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
        positions = list[ColumnElement[bool]]()
        if after is not None:
            positions.append(audit.c.id < min(after, MAX_USER_ID))
        if newer_than is not None:
            positions.append(audit.c.id > min(newer_than, MAX_USER_ID))
        ascending = newer_than is not None

        def read(connection: Connection) -> Sequence[Any]:
            ids = [*positions, *_find_bounds(connection, matching)]
            if matching.user_id is not None:
                return self._read_of_user(connection, ids, matching, limit, ascending=ascending)
            page = _page([*_conditions(matching), *ids], matching, limit, ascending=ascending)
            return connection.execute(page).all()

        entries = [read_audit_entry(row) for row in self._database.browse(read)]
        return entries[::-1] if ascending else entries

    def _read_of_user(
        self,
        connection: Connection,
        ids: Sequence[ColumnElement[bool]],
        matching: AuditFilter,
        limit: int,
        *,
        ascending: bool,
    ) -> list[Any]:
        """Read a page of one user's entries from more and more buckets, until it is full. See `AUDIT_BUCKET`."""
        hide = self._database.dialect.without_index  # otherwise, SQLite might read the index of another condition
        order = audit.c.id + literal_column("0")  # or all entries in this order
        query = (
            select(*AUDIT_COLUMNS)
            .join_from(_BUCKETS, audit, _BUCKETS.c.number == AUDIT_BUCKET)
            .where(audit.c.user_id == matching.user_id, *_conditions(matching, hide), *ids)
            .order_by(order.asc() if ascending else order.desc())
        )
        nearest = select(AUDIT_BUCKET).order_by(audit.c.id.asc() if ascending else audit.c.id.desc()).limit(1)
        found: list[Any] = []
        bucket_count, remaining = 1, ids
        while len(found) < limit and (start := connection.scalar(nearest.where(*remaining))) is not None:
            first, last = (start, start + bucket_count - 1) if ascending else (start - bucket_count + 1, start)
            page = query.limit(limit - len(found))
            found += connection.execute(page, {"first_bucket": first, "last_bucket": last}).all()
            remaining = [*ids, _is_after(last) if ascending else audit.c.id < first << AUDIT_BUCKET_BITS]
            bucket_count = min(bucket_count * _BUCKET_COUNT_GROWTH, _MAX_BUCKETS)
        return found

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
        found = select(*AUDIT_COLUMNS).where(audit.c.user_id.in_(storable), text(AUDIT_REMOVALS))
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


def _is_after(bucket: int) -> ColumnElement[bool]:
    last_id = ((bucket + 1) << AUDIT_BUCKET_BITS) - 1
    return audit.c.id > min(last_id, MAX_USER_ID)


def _conditions(matching: AuditFilter, hide: Hide = lambda column: column) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions of a filter except the one for ``user_id``."""
    if matching.action is not None:
        yield hide(audit.c.action) == matching.action
    if matching.actor is not None:
        yield hide(audit.c.actor) == matching.actor
    if matching.since is not None:
        yield hide(audit.c.at) >= matching.since
    if matching.until is not None:
        yield hide(audit.c.at) < matching.until
    if matching.bulk_id is not None:
        yield hide(audit.c.bulk_id) == matching.bulk_id
    if matching.is_folded:
        yield hide(audit.c.bulk_id) == literal_column("''")


def _page(
    conditions: Sequence[ColumnElement[bool]], matching: AuditFilter, limit: int, *, ascending: bool
) -> Select[Any]:
    """Return a query for the page. If no index fits the filter, combine one indexed query for each action."""
    order = audit.c.id.asc() if ascending else audit.c.id.desc()
    query = select(*AUDIT_COLUMNS).where(*conditions)
    if matching.actor is not None and matching.is_folded and matching.actor not in FREQUENT_ACTORS:
        query = query.where(text(RARE_ACTORS_UNFOLDED))
    elif (matching.is_folded or matching.bulk_id) and matching.action is None:
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
