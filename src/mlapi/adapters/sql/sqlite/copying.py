"""Copy an SQLite database while other processes use it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mlapi.adapters.sql.sqlite.errors import CORRUPTION_CODES, describe_error, primary_code
from mlapi.adapters.sql.sqlite.files import HEADER, LOG_ENDINGS, SIDE_FILE_ENDINGS, existing_uri
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError

_FORMAT_VERSIONS = slice(18, 20)  # https://www.sqlite.org/fileformat.html, 1.3
_WITHOUT_LOG = b"\1\1"
"""The format versions of a file that does not use the write-ahead log."""
_PAGES_PER_STEP = 1024
"""4 MiB. Ctrl-C ends the copy between two steps."""


def copy_database(source: sqlite3.Connection, file: Path, *, name: str) -> None:
    """Write a consistent copy of the database to an empty file. The copy needs no other file beside it.

    Args:
        source: a connection with an open transaction that has already read something. With the write-ahead log, the
            transaction neither waits for writers nor makes them wait. Without a transaction, every change by another
            process would restart the copy.
        file: the empty file. The caller must flush it to disk.
        name: the name of the database, for error messages.

    Raises:
        ConfigurationError: if the copy is damaged, because the database is.
    """
    with closing(sqlite3.connect(file, isolation_level=None)) as copy:
        # A file that vanishes after a crash needs no journal.
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = OFF", "synchronous = OFF"):
            copy.execute(f"PRAGMA {setting}")
        source.backup(copy, pages=_PAGES_PER_STEP)
        copy.execute("PRAGMA journal_mode = DELETE")  # instead of the write-ahead log, which is in other files
        damage = [line for (line,) in copy.execute("PRAGMA integrity_check(1)") if line != "ok"]
    if damage:
        raise ConfigurationError(f"{name} is damaged: {damage[0]}")


@contextmanager
def reading_file(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a read transaction in a file, and leave no other file beside it.

    Raises:
        ConfigurationError: if the file is not an intact SQLite database.
    """
    with file.open("rb") as stream:
        if stream.read(len(HEADER)) != HEADER:
            raise ConfigurationError(f"{file} is not an SQLite database")
    has_log = any(file.with_name(f"{file.name}{ending}").exists() for ending in LOG_ENDINGS)
    uri = existing_uri(file, is_immutable=not has_log)
    with translating_errors(file), closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        yield connection


def is_backup(file: Path) -> bool:
    """Return whether `copy_database` may have written this file, from a database of mlapi."""
    with file.open("rb") as stream:
        # A service has used the file, or the file is not a database.
        if stream.read(_FORMAT_VERSIONS.stop)[_FORMAT_VERSIONS] != _WITHOUT_LOG:
            return False
    try:
        with reading_file(file) as connection:
            query = "SELECT 1 FROM sqlite_master WHERE name = 'mlapi_key_check'"
            return connection.execute(query).fetchone() is not None
    except ConfigurationError:  # it is not a database, or is damaged
        return False


@contextmanager
def translating_errors(file: Path) -> Iterator[None]:
    """Raise mlapi's errors instead of SQLite's. A damaged file is a `ConfigurationError`."""
    try:
        yield
    except sqlite3.Error as error:
        if primary_code(error) in CORRUPTION_CODES:
            raise ConfigurationError(f"{file} is damaged, or is not an SQLite database") from None
        raise RepositoryUnavailableError(describe_error(error)) from None


def remove_side_files(file: Path) -> None:
    """Remove the write-ahead log, its index and the journal of a file that no process uses."""
    for ending in SIDE_FILE_ENDINGS:
        with suppress(FileNotFoundError):
            os.unlink(f"{file}{ending}")  # noqa: PTH108 - also counted by the tests that kill this process
