"""The users in a table: changes become statements in one durable transaction, rows become `User`s."""

import threading
from collections.abc import Callable, Sequence

from sqlalchemy import bindparam, select

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.statements import COLUMNS, can_exist, user_of
from mlapi.adapters.sql.tables import users
from mlapi.domain.changes import Change, Outcome
from mlapi.domain.errors import RepositoryUnavailableError, UserNotFoundError
from mlapi.domain.model import User, UserId, UsernameKey

_SELECT = select(*COLUMNS).where(users.c.id == bindparam("by_id"))
_SELECT_BY_KEY = select(*COLUMNS).where(users.c.username_key == bindparam("by_key"))
_SELECT_PAGE = select(*COLUMNS).where(users.c.id > bindparam("after")).order_by(users.c.id).limit(bindparam("up_to"))


class SqlUserRepository:
    """A `UserRepository` in SQLite or PostgreSQL.

    Args:
        database: where.
        before_first_use: called once before the first transaction, and again at the next one if it raised: a database
            that is away at the start is prepared when it comes.
    """

    def __init__(self, database: Database, *, before_first_use: Callable[[], None] | None = None) -> None:
        self._database = database
        self._before_first_use = before_first_use
        self._opening = threading.Lock()

    def open(self) -> None:
        """Prepare the database unless that is done. Every other method begins with this.

        Raises:
            ConfigurationError: as ``before_first_use`` does.
            RepositoryUnavailableError: if the database is away.
        """
        if self._before_first_use is None:
            return
        if not self._opening.acquire(timeout=self._database.wait):
            raise RepositoryUnavailableError("the database is being opened")
        try:
            if self._before_first_use is not None:
                self._before_first_use()
                self._before_first_use = None
        finally:
            self._opening.release()

    def apply(self, changes: Sequence[Change], *, commit_by: float | None = None) -> list[Outcome]:
        self.open()
        if not changes:
            return []
        dialect = self._database.dialect
        return self._database.write_batch(lambda connection: dialect.apply(connection, changes), commit_by=commit_by)

    def get(self, user_id: UserId) -> User:
        self.open()
        if can_exist(user_id):
            row = self._database.read(lambda connection: connection.execute(_SELECT, {"by_id": user_id}).one_or_none())
            if row is not None:
                return user_of(*row)
        raise UserNotFoundError(user_id)

    def find(self, key: UsernameKey) -> User | None:
        self.open()
        row = self._database.read(lambda connection: connection.execute(_SELECT_BY_KEY, {"by_key": key}).one_or_none())
        return None if row is None else user_of(*row)

    def page(self, *, after: UserId, limit: int) -> list[User]:
        self.open()
        values = {"after": after, "up_to": limit}
        rows = self._database.read(lambda connection: connection.execute(_SELECT_PAGE, values).all())
        return [user_of(*row) for row in rows]

    def check(self) -> None:
        self.open()
        self._database.write_batch(self._database.dialect.check)
