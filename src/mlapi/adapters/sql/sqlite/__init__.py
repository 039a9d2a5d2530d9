"""SQLite: one file, one writer at a time. Commands are applied one by one, which costs about 10 us each."""

from mlapi.adapters.sql.sqlite.dialect import SqliteDialect

__all__ = ["SqliteDialect"]
