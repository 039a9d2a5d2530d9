"""A user repository in SQLite or PostgreSQL."""

from collections.abc import Sequence
from datetime import date, datetime
from functools import partial

import attrs
from sqlalchemy import Date, bindparam, func, select, type_coerce

from mlapi.adapters.sql.audit import SqlAuditTrail
from mlapi.adapters.sql.database import BatchRejectedError, Database
from mlapi.adapters.sql.links import SqlLinks
from mlapi.adapters.sql.principals import is_storable_text, is_storable_user_id
from mlapi.adapters.sql.rows import API_KEY_COLUMNS, USER_COLUMNS, read_api_key, read_user
from mlapi.adapters.sql.tables import api_keys, users
from mlapi.adapters.sql.user_filters import count_users
from mlapi.adapters.sql.user_lists import ListQuery
from mlapi.domain.audit import make_audit_entry
from mlapi.domain.commands import Command, Outcome, Remove
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.errors import (
    ChangeRejectedError,
    RepositoryUnavailableError,
    UserNotFoundError,
    UserReferencedError,
)
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.rules import EVERY_USER, UserFilter
from mlapi.domain.users import MAX_USER_ID, User, UserId, UsernameKey, UserOrder

_SELECT = select(*USER_COLUMNS).where(users.c.id == bindparam("by_id"))

_SELECT_BY_PREFIX = (
    select(*USER_COLUMNS)
    .where(users.c.username_key >= bindparam("prefix"), users.c.username_key < bindparam("prefix_end"))
    .order_by(users.c.username_key)
    .limit(bindparam("limit"))
)
_REGISTRATION_DAY = type_coerce(func.date(users.c.created_datetime), Date)
_REGISTRATIONS = (
    select(_REGISTRATION_DAY, func.count())
    .where(users.c.created_datetime >= bindparam("since"))
    .group_by(_REGISTRATION_DAY)
)
_LAST_CODE_POINT = "\U0010ffff"
_SELECT_API_KEYS = (
    select(*API_KEY_COLUMNS)
    .where(api_keys.c.user_id == bindparam("by_id"))
    .order_by(api_keys.c.created_datetime, api_keys.c.id)
)


class SqlUserRepository:
    """A `UserRepository` in SQLite or PostgreSQL.

    Args:
        database: contains the tables.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.audit = SqlAuditTrail(database)
        self.links = SqlLinks(database)

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        if not commands:
            return []
        dialect = self._database.dialect
        try:
            return self._database.apply_batch(
                lambda connection: dialect.apply(connection, commands),
                commit_by=commit_by,
                write_and_commit=lambda connection: dialect.apply_and_commit(connection, commands, commit_by=commit_by),
            )
        except BatchRejectedError as rejected:
            if len(commands) == 1:
                return [self._reject(commands[0], rejected, commit_by)]
        return self._apply_halves(commands, commit_by)

    def _apply_halves(self, commands: Sequence[Command], commit_by: float | None) -> list[Outcome]:
        """Apply each half of a rejected batch, to find the commands that the database rejects."""
        middle = len(commands) // 2
        outcomes = self.apply(commands[:middle], commit_by=commit_by)
        try:
            return outcomes + self.apply(commands[middle:], commit_by=commit_by)
        except RepositoryUnavailableError as error:
            raise attrs.evolve(error, may_be_done=True) from None  # the first half has been committed

    def _reject(self, command: Command, rejected: BatchRejectedError, commit_by: float | None) -> Outcome:
        """Write the audit entry for a command that the database rejects, and return its outcome."""
        outcome: Outcome
        if rejected.is_reference and isinstance(command, Remove):
            outcome = UserReferencedError(command.user_id)
        else:
            outcome = ChangeRejectedError(getattr(command, "user_id", None), str(rejected))
        entry = make_audit_entry(command, outcome)
        if entry is not None:
            add_entries = self._database.dialect.add_audit_entries
            self._database.write_batch(lambda connection: add_entries(connection, [entry]), commit_by=commit_by)
        return outcome

    def get(self, user_id: UserId) -> User:
        if is_storable_user_id(user_id):
            row = self._database.browse(
                lambda connection: connection.execute(_SELECT, {"by_id": user_id}).one_or_none()
            )
            if row is not None:
                return read_user(row)
        raise UserNotFoundError(user_id)

    def find(self, key: UsernameKey) -> User | None:
        (user,) = self.find_many([key])
        return user

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        found = self._database.read_batch(partial(self._database.dialect.find_users, keys=keys)) if keys else {}
        return [found.get(key) for key in keys]

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        if after > MAX_USER_ID:
            return []
        query = ListQuery(dialect=self._database.dialect, order="id", matching=matching)
        position = ListPosition(after, after)
        return self._database.browse(lambda connection: query.read_users(connection, after=position, limit=limit))

    def list_sorted(
        self,
        order: UserOrder,
        *,
        descending: bool = False,
        after: ListPosition | None = None,
        before: ListPosition | None = None,
        limit: int,
        matching: UserFilter = EVERY_USER,
    ) -> list[ListedUser]:
        query = ListQuery(dialect=self._database.dialect, order=order, descending=descending, matching=matching)
        return self._database.browse(
            lambda connection: query.read_listed(connection, after=after, before=before, limit=limit)
        )

    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        if not is_storable_text(prefix):
            return []
        parameters = {"prefix": prefix, "prefix_end": _prefix_end(prefix), "limit": limit}
        rows = self._database.browse(lambda connection: connection.execute(_SELECT_BY_PREFIX, parameters).all())
        return sorted((read_user(row) for row in rows), key=lambda user: user.id)

    def find_by_email(self, email: str, *, limit: int) -> list[User]:
        return self.list_page(after=UserId(0), limit=limit, matching=UserFilter(email=email))

    def count(self, matching: UserFilter = EVERY_USER, *, limit: int | None = None) -> int:
        dialect = self._database.dialect
        return self._database.browse(lambda connection: count_users(connection, matching, dialect, limit))

    def count_states(self, at: datetime) -> StateCounts:
        return self._database.browse(partial(self._database.dialect.count_states, at=at))

    def count_registrations(self, *, since: datetime) -> dict[date, int]:
        rows = self._database.browse(lambda connection: connection.execute(_REGISTRATIONS, {"since": since}).all())
        return {day: count for day, count in rows}  # noqa: C416 - rows are not tuples

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return self._database.read_batch(partial(self._database.dialect.find_principals, ids=ids))

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        self.get(user_id)
        rows = self._database.browse(lambda connection: connection.execute(_SELECT_API_KEYS, {"by_id": user_id}).all())
        return [read_api_key(row) for row in rows]

    def check(self) -> None:
        self._database.write_batch(self._database.dialect.check_writable)


class PostgresqlUserRepository(SqlUserRepository):
    """A `UserRepository` in PostgreSQL. It is also an `AsyncPrincipalLookup`."""

    async def find_principals_async(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        from mlapi.adapters.sql.postgresql import loop_queries  # noqa: PLC0415 - an optional dependency

        return await self._database.read_async(partial(loop_queries.find_principals, ids=ids))


class SqliteUserRepository(SqlUserRepository):
    """A `UserRepository` in SQLite. It is also a `NonblockingLookup`: reads are fast enough for an event loop."""

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return self._database.read_nowait(partial(self._database.dialect.find_principals, ids=ids))

    def find_many_nowait(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        found = self._database.read_nowait(partial(self._database.dialect.find_users, keys=keys))
        return [found.get(key) for key in keys]


def _prefix_end(prefix: str) -> str:
    """Return a text that sorts after every text with this prefix, by code point.

    Canonical usernames contain no private-use or unassigned characters, and the last code point is unassigned.
    """
    return prefix + _LAST_CODE_POINT
