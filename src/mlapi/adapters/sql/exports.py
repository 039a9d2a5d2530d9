"""The public names of `mlapi.adapters.sql`, which imports this module on first use."""

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
