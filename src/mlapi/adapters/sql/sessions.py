"""Add, find, remove and purge sessions."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_text
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.rows import SESSION_COLUMNS, dict_writer, read_session
from mlapi.adapters.sql.tables import sessions
from mlapi.domain.sessions import Session, SessionId

_WITH_ID = sessions.c.id == bindparam("by_id")
_FIND = select(*SESSION_COLUMNS).where(_WITH_ID)
_LIST = select(*SESSION_COLUMNS).order_by(sessions.c.seen_datetime.desc(), sessions.c.id)
_TOUCH = (
    update(sessions).where(_WITH_ID, sessions.c.seen_datetime < bindparam("at")).values(seen_datetime=bindparam("at"))
)
_REMOVE = delete(sessions).where(_WITH_ID)
_PURGE = purge_statement(sessions, sessions.c.expires_datetime < bindparam("before"))

_row = dict_writer(Session, sessions)


class SqlSessions:
    """`Sessions` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, session: Session) -> None:
        self._database.execute(insert(sessions), _row(session))

    def find(self, session_id: SessionId) -> Session | None:
        if not is_storable_text(session_id):
            return None
        row = self._database.browse(lambda connection: connection.execute(_FIND, {"by_id": session_id}).one_or_none())
        return None if row is None else read_session(row)

    def touch(self, session_id: SessionId, at: datetime) -> None:
        if is_storable_text(session_id):
            self._database.execute(_TOUCH, {"by_id": session_id, "at": at})

    def remove(self, session_id: SessionId) -> bool:
        return is_storable_text(session_id) and self._database.execute(_REMOVE, {"by_id": session_id}) > 0

    def remove_others(self, session: Session) -> int:
        is_owner = (
            sessions.c.user_id == session.user_id if session.manager is None else sessions.c.manager == session.manager
        )
        others = delete(sessions).where(is_owner, sessions.c.id != session.id)
        return self._database.execute(others)

    def list_by_manager(self, name: str | None, *, limit: int) -> list[Session]:
        if name is None:
            return self._list(sessions.c.manager.is_not(None), limit)
        return self._list(sessions.c.manager == name, limit) if is_storable_text(name) else []

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})

    def _list(self, condition: ColumnElement[Any], limit: int) -> list[Session]:
        page = _LIST.where(condition).limit(limit)
        return [read_session(row) for row in self._database.browse(lambda connection: connection.execute(page).all())]
