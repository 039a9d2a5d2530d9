"""The users in a table: changes become statements in one durable transaction, rows become `User`s."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, func, or_, select

from mlapi.adapters.sql.audit import SqlAuditTrail
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.statements import API_KEY_COLUMNS, COLUMNS, api_key_of, can_exist, user_of
from mlapi.adapters.sql.tables import api_keys, users
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.errors import RepositoryUnavailableError, UserNotFoundError
from mlapi.domain.users import USER_ID_MAX, User, UserId, UsernameKey

_SELECT = select(*COLUMNS).where(users.c.id == bindparam("by_id"))
_SELECT_BY_KEY = select(*COLUMNS).where(users.c.username_key == bindparam("by_key"))
_SELECT_BY_KEYS = select(users.c.username_key, *COLUMNS).where(
    users.c.username_key.in_(bindparam("by_keys", expanding=True))
)
_KEYS = 1_000
"""Keys in one statement. PostgreSQL takes 65,535 parameters, SQLite 32,766; more than this make it no faster."""

_COUNT = select(func.count()).select_from(users)
_SELECT_API_KEYS = (
    select(*API_KEY_COLUMNS)
    .where(api_keys.c.user_id == bindparam("by_id"))
    .order_by(api_keys.c.created_datetime, api_keys.c.id)
)


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
        self.audit = SqlAuditTrail(database, self.open)

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

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        self.open()
        if not commands:
            return []
        dialect = self._database.dialect
        return self._database.write_batch(lambda connection: dialect.apply(connection, commands), commit_by=commit_by)

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

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        self.open()
        batches = [{"by_keys": keys[begin : begin + _KEYS]} for begin in range(0, len(keys), _KEYS)]

        def rows(connection: Connection) -> list[Any]:
            return [row for batch in batches for row in connection.execute(_SELECT_BY_KEYS, batch)]

        found = {key: user_of(*row) for key, *row in self._database.read(rows)}
        return [found.get(key) for key in keys]

    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        self.open()
        if after > USER_ID_MAX:
            return []
        page = select(*COLUMNS).where(users.c.id > after).order_by(users.c.id).limit(limit)
        if enabled is not None:
            page = page.where(users.c.enabled == enabled)
        if containing:
            address = func.lower(users.c.email)
            page = page.where(
                or_(
                    users.c.username_key.contains(containing, autoescape=True),
                    address.contains(containing, autoescape=True),
                )
            )
        return [user_of(*row) for row in self._database.read(lambda connection: connection.execute(page).all())]

    def count(self) -> int:
        self.open()
        return self._database.read(lambda connection: connection.scalar(_COUNT) or 0)

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        self.open()
        return self._database.read_batch(partial(self._database.dialect.find_principals, subjects=ids))

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        self.get(user_id)
        rows = self._database.read(lambda connection: connection.execute(_SELECT_API_KEYS, {"by_id": user_id}).all())
        return [api_key_of(*row) for row in rows]

    def check(self) -> None:
        self.open()
        self._database.write_batch(self._database.dialect.check)


class SqliteUserRepository(SqlUserRepository):
    """A `UserRepository` in SQLite, which is fast enough to be read on an event loop: it is a `NonblockingLookup`."""

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        self.open()
        return self._database.read_nowait(partial(self._database.dialect.find_principals, subjects=ids))
