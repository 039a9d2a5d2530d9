"""The files of an SQLite database."""

from pathlib import Path

from sqlalchemy import URL

from mlapi.adapters.sql.existing import FileChange


def database_file(url: URL) -> Path:
    """Return the absolute path of the database file."""
    return Path(url.database or "").absolute()


def all_files(url: URL) -> tuple[Path, ...]:
    """Return the database file, its write-ahead log, and the log's index."""
    file = database_file(url)
    return (file, *(file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm")))


class FileChangeCheck:
    """A function that returns whether a file was removed or replaced since the last call."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._identity: tuple[int, int] | None = None
        """Device and inode of the file at the last call."""

    def __call__(self) -> FileChange | None:
        try:
            status = self._file.stat()
        except OSError:
            identity = None  # the file does not exist
        else:
            identity = status.st_dev, status.st_ino
        previous, self._identity = self._identity, identity
        if previous is None or identity == previous:
            return None
        return "removed" if identity is None else "replaced"
