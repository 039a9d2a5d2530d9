"""Replace an SQLite database with a checked copy of a backup, while no process uses it."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

import attrs

from mlapi.adapters.sql.row_readers import Row
from mlapi.adapters.sql.sqlite.copying import copy_database, remove_side_files, translating_errors
from mlapi.adapters.sql.sqlite.errors import LOCKED_CODES, primary_code
from mlapi.adapters.sql.sqlite.files import KEPT_INFIX, LOG_ENDINGS, existing_uri
from mlapi.atomic_files import drafting, give_to_owner_of_folder, publish
from mlapi.domain.backups import MAX_EXAMPLES, Affected, RestoreEffects
from mlapi.domain.errors import ConfigurationError
from mlapi.domain.users import generate_token_epoch

_IN_USE = (
    "{} is in use: stop the service, every application with the guard and other programs that use it, then run this"
    " again"
)
_TIMEOUT_SECONDS = 2.0
# The bytes that SQLite locks: https://www.sqlite.org/src/file/src/os.h, PENDING_BYTE
_FIRST_LOCK_BYTE = 0x4000_0000
_LOCK_BYTES = 512

# "main" is the current database and "restored" the copy of the backup.
_ADD_LAST_ID = (  # SQLite adds the row of a table with its first id
    "INSERT INTO sqlite_sequence (seq, name) SELECT ?1, ?2 WHERE ?2 NOT IN (SELECT name FROM sqlite_sequence)"
)
_LAST_IDS = "SELECT seq, name FROM main.sqlite_sequence"
_SAME_USERS = "FROM restored.users AS r JOIN main.users AS m ON (r.id, r.username_key) = (m.id, m.username_key)"
_USED = (
    "SELECT a.user_id, a.allowance, a.starts_at, a.used FROM main.mlapi_allowances AS a JOIN main.users AS m"
    " ON m.id = a.user_id JOIN restored.users AS r ON (r.id, r.username_key) = (m.id, m.username_key)"
)
_KEEP_USED = (
    "INSERT INTO mlapi_allowances (user_id, allowance, starts_at, used) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (user_id, allowance) DO UPDATE SET starts_at = excluded.starts_at, used = excluded.used"
)
_AFFECTED = {
    "enabled": f"SELECT r.username {_SAME_USERS} WHERE r.enabled AND NOT m.enabled",
    "disabled": f"SELECT r.username {_SAME_USERS} WHERE m.enabled AND NOT r.enabled",
    "reverted": f"SELECT r.username {_SAME_USERS} WHERE (r.expires_datetime, r.plan, r.metadata, r.email, r.username)"
    " IS NOT (m.expires_datetime, m.plan, m.metadata, m.email, m.username)",
    "returning": "SELECT username FROM restored.users WHERE (id, username_key) NOT IN"
    " (SELECT id, username_key FROM main.users)",
    "lost": "SELECT username FROM main.users WHERE (id, username_key) NOT IN"
    " (SELECT id, username_key FROM restored.users)",
    "returning_api_keys": "SELECT u.username || ': ' || k.name FROM restored.mlapi_api_keys AS k"
    " JOIN restored.users AS u ON u.id = k.user_id WHERE k.id NOT IN (SELECT id FROM main.mlapi_api_keys)",
    "lost_api_keys": "SELECT u.username || ': ' || k.name FROM main.mlapi_api_keys AS k JOIN main.users AS u"
    " ON u.id = k.user_id WHERE k.id NOT IN (SELECT id FROM restored.mlapi_api_keys)",
    "returning_managers": "SELECT name FROM restored.mlapi_managers WHERE (name, token_id) NOT IN"
    " (SELECT name, token_id FROM main.mlapi_managers)",
    "lost_managers": "SELECT name FROM main.mlapi_managers WHERE (name, token_id) NOT IN"
    " (SELECT name, token_id FROM restored.mlapi_managers)",
    # The tokens of a user who is disabled in the backup stay invalid. Removing a user has revoked the user's tokens.
    "revived_tokens": "SELECT username FROM restored.users AS r WHERE enabled AND (id, username_key, token_epoch)"
    " NOT IN (SELECT id, username_key, token_epoch FROM main.users WHERE enabled)",
}


@contextmanager
def replaceable(file: Path, draft: Path) -> Iterator["Replacement"]:
    """Lock a database file, which may be damaged or missing, until the block ends.

    Args:
        file: the database file, with symbolic links resolved.
        draft: the file that will replace it.

    Raises:
        ConfigurationError: if another process uses the database, or if it does not belong to mlapi.
    """
    import fcntl  # noqa: PLC0415 - missing on Windows, where tests of other projects import this module

    if not file.exists() or not file.stat().st_size:
        yield Replacement(file, draft)
        return
    with closing(
        sqlite3.connect(existing_uri(file), uri=True, timeout=_TIMEOUT_SECONDS, isolation_level=None)
    ) as connection:
        try:
            _lock(connection, draft)
        except sqlite3.Error as error:
            if primary_code(error) in LOCKED_CODES:
                raise ConfigurationError(_IN_USE.format(file)) from None
        else:
            with translating_errors(file):
                yield Replacement(file, draft, connection)
            return
    # SQLite cannot read the file, which may be the reason for the restore.
    with file.open("r+b") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_BYTES, _FIRST_LOCK_BYTE)
        except OSError:
            raise ConfigurationError(_IN_USE.format(file)) from None
        yield Replacement(file, draft, damaged=stream)


def _lock(connection: sqlite3.Connection, draft: Path) -> None:
    """Lock the file exclusively, and merge its write-ahead log into it."""
    connection.execute("ATTACH ? AS restored", [existing_uri(draft)])
    connection.execute("PRAGMA main.locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA main.synchronous = EXTRA")
    connection.execute("PRAGMA main.journal_mode = DELETE").fetchall()
    connection.execute("BEGIN EXCLUSIVE")  # in this locking mode, the lock is kept after the transaction
    connection.execute("COMMIT")
    tables = {name for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
    if "users" in tables and "mlapi_key_check" not in tables:
        raise ConfigurationError("the current database does not belong to mlapi: check database.url")


@attrs.frozen
class Replacement:
    """The replacement of a locked database. See `mlapi.domain.backups.Restore`."""

    _file: Path
    _draft: Path
    _connection: sqlite3.Connection | None = None
    """Holds the lock of an intact database."""
    _damaged: BinaryIO | None = attrs.field(default=None, kw_only=True)
    """Holds the lock of a damaged database."""

    def find_effects(self) -> RestoreEffects | None:
        """Compare the current database with the draft. Return None if this is impossible."""
        if self._connection is None:
            return None
        try:
            return RestoreEffects(**{name: _find(self._connection, query) for name, query in _AFFECTED.items()})
        except sqlite3.Error:  # it is damaged, or has an older schema
            return None

    def carry_out(self, *, end_tokens: bool) -> Path | None:
        """Replace the database. Return the file that keeps the replaced database, or None if there was no database."""
        like = self._file.stat() if self._file.exists() else None
        kept = None
        if self._connection is not None:
            last_ids, used = _find_rows(self._connection, _LAST_IDS), _find_rows(self._connection, _USED)
            self._connection.execute("DETACH restored")
            _edit(self._draft, last_ids, used, end_tokens=end_tokens)
            kept = _keep(self._file, like, partial(_copy_locked, self._connection, self._file))
        else:
            _edit(self._draft, [], [], end_tokens=end_tokens)
            if self._damaged is not None:
                kept = _keep(self._file, like, partial(_copy_bytes, self._damaged))
                _keep_logs(self._file, kept)
        if like is None:
            give_to_owner_of_folder(self._draft)
        remove_side_files(self._file)  # they would damage the new database
        publish(self._draft, self._file, replace=True, like=like)
        return kept


def _find(connection: sqlite3.Connection, query: str) -> Affected:
    ((count,),) = connection.execute(f"SELECT count(*) FROM ({query})").fetchall()  # noqa: S608 - constants
    examples = connection.execute(f"{query} ORDER BY 1 LIMIT {MAX_EXAMPLES}").fetchall()
    return Affected(count, tuple(str(example) for (example,) in examples))


def _find_rows(connection: sqlite3.Connection, query: str) -> list[Row]:
    try:
        return connection.execute(query).fetchall()
    except sqlite3.Error:  # the file is damaged, or has an older schema
        return []


def _edit(draft: Path, last_ids: Sequence[Row], used: Sequence[Row], *, end_tokens: bool) -> None:
    """Prepare the copy of the backup for use as the database."""
    with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
        connection.create_function("new_epoch", 0, generate_token_epoch)
        connection.execute("BEGIN")
        # Do not use the ids of lost users again: other systems may still refer to them.
        connection.executemany("UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = ?2", last_ids)
        connection.executemany(_ADD_LAST_ID, last_ids)
        # Keep counting the requests since the backup. Otherwise, the restore would grant them again.
        connection.executemany(_KEEP_USED, used)
        # Links that were used or ended since the backup must not be valid again.
        connection.execute("DELETE FROM mlapi_links")
        connection.execute("DELETE FROM mlapi_sessions")  # managers and users sign in again
        if end_tokens:
            connection.execute("UPDATE users SET token_epoch = new_epoch()")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()  # an upgrade has enabled the write-ahead log


def _keep(file: Path, like: os.stat_result | None, copy_to: Callable[[Path], None]) -> Path:
    """Copy the database that is about to be replaced. Renaming it would leave no database after a crash."""
    kept = file.with_name(f"{file.name}{KEPT_INFIX}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    with drafting(file) as draft:  # named after the database, so that the next restore removes an abandoned draft
        copy_to(draft)
        publish(draft, kept, replace=False, like=like)
    return kept


def _copy_locked(connection: sqlite3.Connection, file: Path, draft: Path) -> None:
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM main.sqlite_master").fetchone()
        copy_database(connection, draft, name="the current database")
        connection.execute("COMMIT")
    except (ConfigurationError, sqlite3.Error):  # it is damaged, which may be the reason for the restore
        shutil.copyfile(file, draft)


def _copy_bytes(damaged: BinaryIO, draft: Path) -> None:
    with draft.open("wb") as copy:
        shutil.copyfileobj(damaged, copy)


def _keep_logs(file: Path, kept: Path) -> None:
    """Copy the files that may contain recent changes of a damaged database."""
    for ending in LOG_ENDINGS:
        log = file.with_name(f"{file.name}{ending}")
        if log.exists():
            with log.open("rb") as stream, drafting(file) as draft:
                _copy_bytes(stream, draft)
                publish(draft, kept.with_name(f"{kept.name}{ending}"), replace=False)
