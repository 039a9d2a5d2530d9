"""The users in a table: changes become statements in one durable transaction, rows become `User`s."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Delete, Row, Update, bindparam, case, delete, select, update

from mlapi.adapters.sql.database import WAIT, Database
from mlapi.adapters.sql.tables import users
from mlapi.domain.changes import Change, Outcome, Register, SetEnabled
from mlapi.domain.errors import RepositoryUnavailableError, UserExistsError, UserNotFoundError
from mlapi.domain.model import EncryptedPassword, User, UserId, UsernameKey

_LARGEST_ID = 2**63 - 1  # a signed 64-bit integer, in SQLite as in PostgreSQL
_REGISTER_ATTEMPTS = 5

_SELECT = select(users).where(users.c.id == bindparam("by_id"))
_SELECT_BY_KEY = select(users).where(users.c.username_key == bindparam("by_key"))
_SELECT_PAGE = select(users).where(users.c.id > bindparam("after")).order_by(users.c.id).limit(bindparam("up_to"))
_HOLDER = select(users.c.id).where(users.c.username_key == bindparam("by_key"))
_SET_ENABLED = (
    update(users)
    .where(users.c.id == bindparam("by_id"))
    .values(
        enabled=bindparam("flag"),
        updated_datetime=bindparam("at"),
        token_epoch=case((users.c.enabled == bindparam("flag"), users.c.token_epoch), else_=bindparam("epoch")),
    )
    .returning(*users.c)
)
_REMOVE = delete(users).where(users.c.id == bindparam("by_id")).returning(*users.c)


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
        self._insert = (
            database.insert(users).on_conflict_do_nothing(index_elements=["username_key"]).returning(users.c.id)
        )

    def open(self) -> None:
        """Prepare the database unless that is done. Every other method begins with this.

        Raises:
            ConfigurationError: as ``before_first_use`` does.
            RepositoryUnavailableError: if the database is away.
        """
        if self._before_first_use is None:
            return
        if not self._opening.acquire(timeout=WAIT):
            raise RepositoryUnavailableError("the database is being opened")
        try:
            if self._before_first_use is not None:
                self._before_first_use()
                self._before_first_use = None
        finally:
            self._opening.release()

    def apply(self, changes: Sequence[Change]) -> list[Outcome]:
        self.open()
        if not changes:
            return []
        with self._database.writing() as connection:
            return [self._apply(connection, change) for change in changes]

    def get(self, user_id: UserId) -> User:
        self.open()
        if _can_exist(user_id):
            with self._database.reading() as connection:
                row = connection.execute(_SELECT, {"by_id": user_id}).one_or_none()
            if row is not None:
                return _user(row)
        raise UserNotFoundError(user_id)

    def find(self, key: UsernameKey) -> User | None:
        self.open()
        with self._database.reading() as connection:
            row = connection.execute(_SELECT_BY_KEY, {"by_key": key}).one_or_none()
        return None if row is None else _user(row)

    def page(self, *, after: UserId, limit: int) -> list[User]:
        self.open()
        with self._database.reading() as connection:
            rows = connection.execute(_SELECT_PAGE, {"after": after, "up_to": limit}).all()
        return [_user(row) for row in rows]

    def check(self) -> None:
        self.open()
        with self._database.writing() as connection:
            # Takes the lock of a writer and gives it back. PostgreSQL grants that on a standby too: ask it.
            if (
                not self._database.is_sqlite
                and connection.exec_driver_sql("SELECT current_setting('transaction_read_only') = 'on'").scalar_one()
            ):
                raise RepositoryUnavailableError("the database is read-only")

    def _apply(self, connection: Connection, change: Change) -> Outcome:
        if isinstance(change, Register):
            return self._register(connection, change)
        if isinstance(change, SetEnabled):
            flags = {"flag": change.enabled, "at": change.at, "epoch": change.token_epoch}
            return _changed(connection, _SET_ENABLED, change.user_id, flags)
        return _changed(connection, _REMOVE, change.user_id, {})

    def _register(self, connection: Connection, change: Register) -> Outcome:
        user = change.as_user(UserId(0))
        values = {
            "username": user.username,
            "password": user.password.value,
            "email": user.email,
            "enabled": user.enabled,
            "created_datetime": user.created_datetime,
            "updated_datetime": user.updated_datetime,
            "username_key": change.username_key,
            "token_epoch": user.token_epoch,
        }
        # The unique index decides. Its word is about a user whom another server process may have removed before we ask
        # who it is: then the name is free, and we try again.
        for _ in range(_REGISTER_ATTEMPTS):
            user_id = connection.scalar(self._insert, values)
            if user_id is not None:
                return change.as_user(UserId(user_id))
            holder = connection.scalar(_HOLDER, {"by_key": change.username_key})
            if holder is not None:
                return UserExistsError(holder)
        raise RepositoryUnavailableError("a username is registered and removed too fast to follow")


def _changed(connection: Connection, statement: Update | Delete, user_id: UserId, values: dict[str, object]) -> Outcome:
    if _can_exist(user_id):
        row = connection.execute(statement, {"by_id": user_id, **values}).one_or_none()
        if row is not None:
            return _user(row)
    return UserNotFoundError(user_id)


def _can_exist(user_id: UserId) -> bool:
    return 0 < user_id <= _LARGEST_ID


def _user(row: Row[Any]) -> User:
    return User(
        id=UserId(row.id),
        username=row.username,
        password=EncryptedPassword(row.password),
        email=row.email,
        enabled=row.enabled,
        created_datetime=row.created_datetime,
        updated_datetime=row.updated_datetime,
        token_epoch=row.token_epoch,
    )
