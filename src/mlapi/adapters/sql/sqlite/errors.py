"""Describe SQLite's errors without their messages, which may contain stored values."""

import sqlite3

UNDECODABLE = "Could not decode to UTF-8"
"""Beginning of sqlite3's message about invalid text. The rest of the message is the text itself."""

DATA_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError)
"""The errors that parsing raises if the file is damaged, for example if a stored time is invalid."""

CORRUPTION_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
LOCKED_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_FOREIGN_KEY_MESSAGE = "FOREIGN KEY constraint failed"
_CHECK_OWNER = "check that the account that runs mlapi owns it and its folder"

_MESSAGES = {
    sqlite3.SQLITE_BUSY: "the database is locked",
    sqlite3.SQLITE_CANTOPEN: f"the database file cannot be opened: {_CHECK_OWNER}",
    sqlite3.SQLITE_CONSTRAINT: "a constraint failed",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_INTERRUPT: "the statement was interrupted",
    sqlite3.SQLITE_IOERR: "the disk reports an I/O error",
    sqlite3.SQLITE_LOCKED: "a table is locked",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_PERM: f"access to the database file was denied: {_CHECK_OWNER}",
    sqlite3.SQLITE_PROTOCOL: "the database is locked",
    sqlite3.SQLITE_READONLY: f"the database file is read-only: {_CHECK_OWNER}",
    sqlite3.SQLITE_SCHEMA: "the schema has changed",
    sqlite3.SQLITE_TOOBIG: "a value is too large",
}


def primary_code(error: BaseException | None) -> int:
    """Return SQLite's primary result code, or 0 if the sqlite3 module itself raised the error."""
    extended_code: int = getattr(error, "sqlite_errorcode", 0)
    return extended_code & 0xFF


def is_rejection(error: BaseException | None) -> bool:
    """Return True if a constraint or a trigger rejected a change."""
    return isinstance(error, sqlite3.Error) and primary_code(error) == sqlite3.SQLITE_CONSTRAINT


def is_reference(error: BaseException | None) -> bool:
    """Return True for a rejection because of a foreign key. The code for ON DELETE RESTRICT is that of a trigger."""
    return str(error) == _FOREIGN_KEY_MESSAGE


def describe_file_error(error: BaseException | None) -> str:
    """Describe an error of SQLite, or the error that damaged data raises, such as a `ValueError`."""
    # The messages of these errors may contain stored values.
    if isinstance(error, DATA_ERRORS) or str(error).startswith(UNDECODABLE):
        return f"the database file contains unreadable data ({type(error).__name__}); run `mlapi doctor`"
    is_corrupt = isinstance(error, sqlite3.Error) and primary_code(error) in CORRUPTION_CODES
    return describe_error(error) + ("; run `mlapi doctor`" if is_corrupt else "")


def describe_error(error: BaseException | None) -> str:
    """Describe an error of SQLite by its result code, or any other error by its class."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{_MESSAGES.get(primary_code(error)) or _describe_statement_error(str(error))} ({name})"


def _describe_statement_error(message: str) -> str:
    from mlapi.adapters.sql.tables import find_table_name  # noqa: PLC0415 - guards do without SQLAlchemy

    table = find_table_name(message)
    if table and message.startswith("no such table: "):
        return f"the table {table} is missing"
    if table and message.endswith(" already exists"):
        return f"the table {table} exists already: rename it"
    return "a statement failed"
