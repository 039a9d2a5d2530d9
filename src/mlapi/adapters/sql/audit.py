"""Read and purge the audit trail. The dialects write its entries, together with each batch of commands."""

from datetime import datetime

from sqlalchemy import Date, bindparam, delete, func, select, type_coerce

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.rows import AUDIT_COLUMNS, read_audit_entry
from mlapi.adapters.sql.tables import audit
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.users import MAX_USER_ID, UserId

_DAY = type_coerce(func.date(audit.c.at), Date)
_COUNT_PER_DAY = (
    select(_DAY, audit.c.action, func.count())
    .where(audit.c.at >= bindparam("since"), audit.c.outcome == "done")
    .group_by(_DAY, audit.c.action)
    .order_by(_DAY, audit.c.action)
)
_OLDEST = (
    select(audit.c.id)
    .where(audit.c.at < bindparam("before"))
    .order_by(audit.c.at, audit.c.id)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)  # another process may be purging too
)
_PURGE = delete(audit).where(audit.c.id.in_(_OLDEST))


class SqlAuditTrail:
    """An `AuditTrail` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_page(self, *, after: AuditId | None = None, limit: int, user_id: UserId | None = None) -> list[AuditEntry]:
        page = select(*AUDIT_COLUMNS).order_by(audit.c.id.desc()).limit(limit)
        if after is not None:
            page = page.where(audit.c.id < min(after, MAX_USER_ID))
        if user_id is not None:
            if not is_storable_user_id(user_id):
                return []
            page = page.where(audit.c.user_id == user_id)
        rows = self._database.browse(lambda connection: connection.execute(page).all())
        return [read_audit_entry(row) for row in rows]

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        rows = self._database.browse(lambda connection: connection.execute(_COUNT_PER_DAY, {"since": since}).all())
        return [DailyCount(*row) for row in rows]

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.write(
            lambda connection: connection.execute(_PURGE, {"before": before, "limit": limit}).rowcount
        )
