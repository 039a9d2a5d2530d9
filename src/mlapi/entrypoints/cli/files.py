"""Files that ``mlapi users import`` and ``mlapi users export`` read and write."""

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

import msgspec

from mlapi.application.user_import import Row
from mlapi.atomic_files import atomic_write
from mlapi.domain.errors import FieldError
from mlapi.domain.rules import MAX_USERNAME_CHARS
from mlapi.entrypoints.cli.output import CommandError

STDIO = Path("-")
"""Standard input or output."""
_MAX_FIRST_LINE_BYTES = 1000


@contextmanager
def open_input(file: Path) -> Iterator[BinaryIO]:
    """Open a file or standard input in binary mode.

    Raises:
        CommandError: if the file cannot be read.
    """
    if file == STDIO:
        yield sys.stdin.buffer
        return
    with _file_errors(f"{file} cannot be read"), file.open("rb") as stream:
        yield stream


def size_of(stream: BinaryIO) -> int | None:
    """Return the size in bytes, or None for a pipe."""
    status = _status_of(stream)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


class RejectsFile:
    """A `RejectReport` that writes JSON lines. It never contains passwords or hashes.

    The file is created when the first row is rejected, and only the current account can read it. A file from an earlier
    import is emptied immediately.

    Args:
        path: the file to write.
        source: the stream that is being imported, which must not be the same file.
    """

    def __init__(self, path: Path, *, source: BinaryIO) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._lines: list[bytes] = []
        if path.exists():
            source_status = _status_of(source)
            if source_status is not None and os.path.samestat(path.stat(), source_status):
                raise CommandError(f"{path} is the file to import: choose another name with --rejects")
            if not _is_replaceable(path, b'"line"'):
                raise CommandError(f"{path} is not a report of rejected rows: choose another name with --rejects")
            self._open()

    def write(self, row: Row, errors: Iterable[FieldError]) -> None:
        username = row.values.get("username")
        shown = username[:MAX_USERNAME_CHARS] if isinstance(username, str) else None
        for error in errors:
            value = {"line": row.number, "username": shown, "field": error.field, "message": error.message}
            self._lines.append(msgspec.json.encode(value) + b"\n")

    def flush(self) -> None:
        """Write buffered lines to the file.

        Raises:
            CommandError: if the file cannot be written.
        """
        if not self._lines:
            return
        descriptor = self._open() if self._descriptor is None else self._descriptor
        remaining = memoryview(b"".join(self._lines))
        self._lines = []
        with self._write_errors():
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]

    def _open(self) -> int:
        with self._write_errors():
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        return self._descriptor

    def _write_errors(self) -> AbstractContextManager[None]:
        return _file_errors(f"{self._path} cannot be written", "; choose another file with --rejects")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


@contextmanager
def open_output(file: Path, *, force: bool) -> Iterator[TextIO]:
    """Yield a UTF-8 stream that writes to a file or to standard output.

    A file is created only when the block ends without an error, so it is always complete. Only the current account can
    read it.

    Args:
        file: the file to write, or ``-`` for standard output.
        force: whether to replace an existing export.

    Raises:
        CommandError: if the file exists and must not be replaced, or if it cannot be written.
    """
    if file == STDIO:
        stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
        yield stream
        stream.detach()  # flushes, and leaves standard output open
        return
    if file.exists() and not file.is_file():
        raise CommandError(f"{file} is not a regular file: use - as the file and redirect the output")
    if file.exists() and not force:
        raise CommandError(f"{file} exists: use --force to replace it")
    if file.exists() and not _is_replaceable(file, b"username"):
        raise CommandError(f"{file} is not an export, so --force does not replace it: choose another name")
    file = file.resolve()  # replace the target of a symbolic link, not the link
    with _file_errors(f"{file} cannot be written"), atomic_write(file, replace=force) as output:
        yield output


def _is_replaceable(file: Path, word: bytes) -> bool:
    """Return whether the file looks like earlier output, so that no database or key is overwritten by mistake."""
    if not file.is_file():
        return True  # a device has no content that could be lost
    with _file_errors(f"{file} cannot be read"), file.open("rb") as stream:
        first_line = stream.readline(_MAX_FIRST_LINE_BYTES)
    return not first_line or word in first_line


def _status_of(stream: BinaryIO) -> os.stat_result | None:
    try:
        return os.fstat(stream.fileno())
    except OSError:  # in tests, the stream is not a file
        return None


@contextmanager
def _file_errors(message: str, solution: str = "") -> Iterator[None]:
    """Convert operating system errors to `CommandError`."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{message}: {error.strerror}{solution}") from None
