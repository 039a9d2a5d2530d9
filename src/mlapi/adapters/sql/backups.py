"""Back up an SQLite database, and replace it with a backup."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy import URL

from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.inspection import inspect_database
from mlapi.adapters.sql.revisions import HEAD, REVISIONS
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.sqlite.copying import copy_database, is_backup, reading_file, translating_errors
from mlapi.adapters.sql.sqlite.files import KEPT_INFIX, SIDE_FILE_ENDINGS
from mlapi.adapters.sql.sqlite.replacing import Replacement, replaceable
from mlapi.atomic_files import drafting, remove_abandoned_drafts
from mlapi.domain.backups import RestoreEffects
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.inspection import Inspection


def find_file_error(file: Path) -> str | None:
    """Return why a file cannot become a backup. See `mlapi.domain.backups.BackupStorage`."""
    if file.name.endswith(SIDE_FILE_ENDINGS):
        return "cannot be the name of a backup: use a name such as mlapi-backup.db"
    if not file.exists():
        return None
    if KEPT_INFIX in file.name:
        return "is a database that a restore has kept, so --force does not replace it: choose another name"
    if any(os.path.lexists(f"{file}{ending}") for ending in SIDE_FILE_ENDINGS):
        return "is a database in use, so --force does not replace it: choose another name"
    if file.stat().st_size and not is_backup(file):
        return "is not a backup, so --force does not replace it: choose another name"
    return None


def back_up(database: Database, file: Path) -> int:
    """Write a copy of the database to an empty file. See `mlapi.domain.backups.BackupStorage`."""
    _require_file(database)
    (source, *_) = database.dialect.files(database.engine.url)
    with database.open_existing("read") as connection, translating_errors(source):
        connection.exec_driver_sql("SELECT 1 FROM sqlite_master").fetchall()
        driver_connection: Any = connection.connection.driver_connection
        copy_database(driver_connection, file, name="the database")
    return _inspect(file).users


@contextmanager
def open_restore(database: Database, file: Path) -> Iterator["SqliteRestore"]:
    """Check a backup and lock the database. See `mlapi.domain.backups.BackupStorage`."""
    _require_file(database)
    (target, *_) = database.dialect.files(database.engine.url)
    database.close()
    if target.exists() and target.samefile(file):
        raise ConfigurationError(f"{file} is the database itself: name a backup of it")
    remove_abandoned_drafts(target)
    with drafting(target) as draft:
        with reading_file(file) as connection:
            copy_database(connection, draft, name=str(file))
        found = _upgrade(file, draft)
        with replaceable(target, draft) as replacement:
            yield SqliteRestore(found.users, found.fingerprint, replacement)


@attrs.frozen
class SqliteRestore:
    """A checked backup, and the lock of the database that it can replace."""

    users: int
    fingerprint: str | None
    _replacement: Replacement

    @property
    def effects(self) -> RestoreEffects | None:
        return self._replacement.find_effects()

    def carry_out(self, *, end_tokens: bool) -> Path | None:
        return self._replacement.carry_out(end_tokens=end_tokens)


def _require_file(database: Database) -> None:
    tools = database.dialect.describe_backup_tools(database.engine.url)
    if tools is not None:
        raise ConfigurationError(tools)


def _inspect(file: Path) -> Inspection:
    with _opened(file) as database, database.open_existing("read") as connection:
        return inspect_database(connection, find_password_error=None)


def _upgrade(file: Path, draft: Path) -> Inspection:
    """Check that a copy of a backup belongs to mlapi, and upgrade its schema if necessary."""
    found = _inspect(draft)
    if found.kind != "mlapi":
        raise ConfigurationError(f"{file} is not a backup of mlapi: it contains no users of mlapi")
    if found.revision not in REVISIONS:
        raise ConfigurationError(
            f"{file} was made by a newer version of mlapi (schema revision {found.revision}): upgrade mlapi first"
        )
    if found.revision != HEAD:
        with _opened(draft) as database:
            upgrade(database)
    return found


def _opened(file: Path) -> Database:
    return Database(URL.create("sqlite", database=str(file)))
