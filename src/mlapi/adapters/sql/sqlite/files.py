"""The files of an SQLite database."""

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from mlapi.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL

HEADER = b"SQLite format 3\0"
"""The first bytes of a database that is not empty (https://www.sqlite.org/fileformat.html, 1.3)."""
LOG_ENDINGS = ("-wal", "-journal")
"""The endings of the files that may contain changes: the write-ahead log and the rollback journal."""
KEPT_INFIX = ".before-restore-"
"""A part of the name of a database that a restore has replaced and kept."""
SIDE_FILE_ENDINGS = ("-wal", "-shm", "-journal")
"""The endings of all files beside a database: the write-ahead log, its index, and the rollback journal."""

FileChange = Literal["removed", "replaced"]
"""What happened to the file of an open database."""


def configured_file(url: "URL") -> Path:
    """Return the absolute path in the URL, which may be a symbolic link to the database file."""
    return Path(url.database or "").absolute()


def database_file(url: "URL") -> Path:
    """Return the absolute path of the database file, with symbolic links resolved, as SQLite does.

    SQLite keeps the write-ahead log beside this file. The generated secrets belong there, too.
    """
    return configured_file(url).resolve()


def validate_single_name(file: Path) -> None:
    """Check that the database file has a single name.

    SQLite derives the name of the write-ahead log from the name of the file. Processes that open the file by different
    names do not see each other's changes, lose changes, and damage the file: see section 2.5 of
    https://www.sqlite.org/howtocorrupt.html.

    Raises:
        ConfigurationError: if the file has several hard links, or is mounted as a single file.
    """
    try:
        link_count = file.stat().st_nlink
    except OSError:
        return  # the file does not exist yet, or SQLite will report the cause
    if _is_mount_point(file):
        raise ConfigurationError(
            f"{file} is mounted as a single file, so changes in its write-ahead log stay outside the mount: mount the"
            " folder that contains it instead"
        )
    if link_count > 1:
        name, copy = shlex.quote(str(file)), shlex.quote(f"{file}.copy")
        raise ConfigurationError(
            f"{file} has {link_count} names (hard links), and programs that open different names damage it: stop them,"
            f" then run `cp -p {name} {copy} && mv {copy} {name}`. To share the database, share its folder"
        )


def _is_mount_point(path: Path) -> bool:
    """Return whether a file or folder is a mount point, on systems that list mount points in ``/proc``."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return False
    # The fifth field is the mount point, with white space and backslashes as octal escapes: see proc(5).
    return str(path) in {_OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), line.split()[4]) for line in lines}


_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


def all_files(file: Path) -> tuple[Path, ...]:
    """Return the database file, its write-ahead log, the log's index, and the rollback journal."""
    return (file, *(file.with_name(f"{file.name}{ending}") for ending in SIDE_FILE_ENDINGS))


def existing_uri(file: Path, *, is_immutable: bool = False) -> str:
    """Return the URI that opens an existing file. SQLite does not create a missing file.

    Args:
        file: the path, in any encoding.
        is_immutable: whether nothing changes the file, so that SQLite needs no other file beside it. Otherwise, the URI
            is not read-only: after a crash, the first connection must be able to roll back the unfinished transaction.
    """
    return f"file:{quote(os.fsencode(file))}?{'mode=ro&immutable=1' if is_immutable else 'mode=rw'}"


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
