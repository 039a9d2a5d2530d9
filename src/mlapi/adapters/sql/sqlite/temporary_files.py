"""Choose where SQLite keeps the temporary data of large sorts, for example to build an index."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy.engine.interfaces import DBAPICursor


def configure_temporary_files(cursor: "sqlite3.Cursor | DBAPICursor") -> None:
    """Keep temporary data in memory if no folder is writable, as on a read-only root file system.

    Otherwise, statements that sort many rows would fail with "disk I/O error".
    """
    if not _has_temporary_folder():
        cursor.execute("PRAGMA temp_store = MEMORY")


def _has_temporary_folder() -> bool:
    # SQLite's own list: https://sqlite.org/tempfiles.html, section 5
    folders = os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp", "."  # noqa: S108
    return any(folder and os.access(folder, os.W_OK | os.X_OK) for folder in folders)
