"""Add, read and purge logins. The dialects remove them together with their user."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import bindparam, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.principals import is_storable_user_id
from mlapi.adapters.sql.purging import purge_statement
from mlapi.adapters.sql.tables import logins, users
from mlapi.domain.logins import Login
from mlapi.domain.users import UserId

_RECENT = (
    select(logins.c.user_id, logins.c.at, logins.c.address)
    .where(logins.c.user_id == bindparam("by_user_id"))
    .order_by(logins.c.at.desc())
    .limit(bindparam("limit"))
)
_PURGE = purge_statement(logins, logins.c.at < bindparam("before"), logins.c.at, logins.c.user_id)
# Lock the user as a foreign key would: a transaction that removes the user then also removes these rows.
_EXISTING = (
    select(
        users.c.id,
        bindparam("login_at", type_=logins.c.at.type),
        bindparam("login_address", type_=logins.c.address.type),
    )
    .where(users.c.id == bindparam("login_user_id"))
    .with_for_update(read=True, key_share=True, of=users)
)


class SqlLogins:
    """`Logins` in SQLite or PostgreSQL.

    Args:
        database: contains the table.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        insert = database.dialect.insert(logins)
        self._insert = insert.from_select(["user_id", "at", "address"], _EXISTING).on_conflict_do_nothing()

    def add(self, logins: Sequence[Login]) -> None:
        rows = [
            {"login_user_id": login.user_id, "login_at": login.at, "login_address": login.address}
            for login in sorted(logins, key=lambda login: (login.user_id, login.at))  # lock users in a fixed order
            if is_storable_user_id(login.user_id)
        ]
        if rows:
            self._database.execute(self._insert, rows)

    def list_recent(self, user_id: UserId, *, limit: int) -> list[Login]:
        if not is_storable_user_id(user_id):
            return []
        parameters = {"by_user_id": user_id, "limit": limit}
        rows = self._database.browse(lambda connection: connection.execute(_RECENT, parameters).all())
        return [Login(*row) for row in rows]

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._database.execute(_PURGE, {"before": before, "limit": limit})
