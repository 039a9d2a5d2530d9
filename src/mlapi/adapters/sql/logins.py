"""Add, read and purge logins. The dialects remove them together with their user."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import bindparam, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.tables import logins
from mlapi.domain.logins import Login
from mlapi.domain.users import UserId

_RECENT = (
    select(logins.c.user_id, logins.c.at, logins.c.address)
    .where(logins.c.user_id == bindparam("by_user_id"))
    .order_by(logins.c.at.desc())
    .limit(bindparam("limit"))
)
_PURGE = purge_statement(logins, logins.c.at < bindparam("before"), logins.c.at, logins.c.user_id)


class SqlLogins:
    """`Logins` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, logins: Sequence[Login]) -> None:
        dialect = self._database.dialect
        storable = [login for login in logins if is_storable_user_id(login.user_id)]
        if storable:
            self._database.write_batch(lambda connection: dialect.add_logins(connection, storable))

    def list_recent(self, user_id: UserId, *, limit: int) -> list[Login]:
        if not is_storable_user_id(user_id):
            return []
        parameters = {"by_user_id": user_id, "limit": limit}
        rows = self._database.browse(lambda connection: connection.execute(_RECENT, parameters).all())
        return [Login(*row) for row in rows]

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})
