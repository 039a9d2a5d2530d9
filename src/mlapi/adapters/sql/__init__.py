"""The users in SQLite or PostgreSQL, through SQLAlchemy Core."""

from mlapi.adapters.sql.adoption.connection import opened
from mlapi.adapters.sql.adoption.findings import Choice, Finding, Found
from mlapi.adapters.sql.adoption.migrate import Adoption
from mlapi.adapters.sql.attempts import SqlAttempts
from mlapi.adapters.sql.database import Database, connection_url, database_url, sqlite_file
from mlapi.adapters.sql.inspection import Inspection, inspected
from mlapi.adapters.sql.key_check import check_key, own_fingerprint, set_own_fingerprint
from mlapi.adapters.sql.repository import SqliteUserRepository, SqlUserRepository
from mlapi.adapters.sql.schema import HEAD, prepare_schema, upgrade

__all__ = [
    "HEAD",
    "Adoption",
    "Choice",
    "Database",
    "Finding",
    "Found",
    "Inspection",
    "SqlAttempts",
    "SqlUserRepository",
    "SqliteUserRepository",
    "check_key",
    "connection_url",
    "database_url",
    "inspected",
    "opened",
    "own_fingerprint",
    "prepare_schema",
    "set_own_fingerprint",
    "sqlite_file",
    "upgrade",
]
