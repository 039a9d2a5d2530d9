"""Shared parts of the dialects' ``open_existing``, which never creates a database."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from mlapi.domain.errors import RepositoryUnavailableError

Purpose = Literal["read", "plan", "change"]
"""``plan`` is like ``read``, but allows temporary tables on PostgreSQL. ``change`` locks an SQLite file exclusively."""

IN_USE = "another program is using the database: stop it, then run this again"


class ConnectionPool(Protocol):
    """The part of `mlapi.adapters.sql.database.Database` that dialects use.

    They cannot import it, because it imports them.
    """

    @property
    def engine(self) -> Engine: ...

    @property
    def timeout_seconds(self) -> float: ...

    def writing(self) -> AbstractContextManager[Connection]: ...


@contextmanager
def translating_errors(describe: Callable[[BaseException | None], str]) -> Iterator[None]:
    """Raise `RepositoryUnavailableError` for every driver error, with the description of the error."""
    try:
        yield
    except DBAPIError as error:
        raise RepositoryUnavailableError(describe(error.orig)) from None
