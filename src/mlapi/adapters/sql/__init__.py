"""Store users in SQLite or PostgreSQL, with SQLAlchemy Core.

The names are imported on first use: a guard on SQLite does without SQLAlchemy, which takes about 20 MB of memory.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlapi.adapters.sql.attempts import SqlAttempts
    from mlapi.adapters.sql.database import Database
    from mlapi.adapters.sql.dialect import namespace_error
    from mlapi.adapters.sql.repository import SqliteUserRepository, SqlUserRepository
    from mlapi.adapters.sql.revisions import HEAD
    from mlapi.adapters.sql.schema import prepare_schema, upgrade
    from mlapi.adapters.sql.storage import SqlStorage
    from mlapi.adapters.sql.urls import connection_url, database_url, unsupported_scheme_error

__all__ = [
    "HEAD",
    "Database",
    "SqlAttempts",
    "SqlStorage",
    "SqlUserRepository",
    "SqliteUserRepository",
    "connection_url",
    "database_url",
    "namespace_error",
    "prepare_schema",
    "unsupported_scheme_error",
    "upgrade",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlapi.adapters.sql import exports  # noqa: PLC0415 - imported on first use

    return getattr(exports, name)
