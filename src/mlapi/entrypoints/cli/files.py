"""The files that ``mlapi users import`` and ``export`` read and write. What is wrong with one is told in one line."""

import io
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

import msgspec

from mlapi.application.user_import import Row
from mlapi.domain.errors import FieldError
from mlapi.domain.rules import USERNAME_MAX_CHARS
from mlapi.entrypoints.cli.output import Refused
from mlapi.secret_files import fsync_folder

STDIO = Path("-")
"""Standard input or output."""


@contextmanager
def opened_input(file: Path) -> Iterator[BinaryIO]:
    if file == STDIO:
        yield sys.stdin.buffer
        return
    with _refusing(f"{file} cannot be read"), file.open("rb") as stream:
        yield stream


def size_of(stream: BinaryIO) -> int | None:
    """Return how many bytes it has, or None for one that has no end yet: a pipe."""
    status = _status_of(stream)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


class RejectsFile:
    """What is wrong with the lines that were refused, as JSON lines. A password or a hash is never in it.

    Made at the first of them, closed to other users; emptied at once if it is there from an import before.

    Args:
        path: of it.
        besides: what is read, which must not be the same file.
    """

    def __init__(self, path: Path, *, besides: BinaryIO) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._lines: list[bytes] = []
        if path.exists():
            read = _status_of(besides)
            if read is not None and os.path.samestat(path.stat(), read):
                raise Refused(f"{path} is what is read: give --rejects another name")
            if not _is_replaceable(path, b'"line"'):
                raise Refused(f"{path} is no report of refused lines: give --rejects another name")
            self._open()

    def write(self, row: Row, problems: Iterable[FieldError]) -> None:
        username = row.values.get("username")
        shown = username[:USERNAME_MAX_CHARS] if isinstance(username, str) else None
        for problem in problems:
            value = {"line": row.number, "username": shown, "field": problem.field, "message": problem.message}
            self._lines.append(msgspec.json.encode(value) + b"\n")

    def flush(self) -> None:
        """Write what was not written yet.

        Raises:
            Refused: if that fails.
        """
        if not self._lines:
            return
        descriptor = self._open() if self._descriptor is None else self._descriptor
        waiting = memoryview(b"".join(self._lines))
        self._lines = []
        with _refusing(f"{self._path} cannot be written", "; --rejects names another file"):
            while waiting:
                waiting = waiting[os.write(descriptor, waiting) :]

    def _open(self) -> int:
        with _refusing(f"{self._path} cannot be written", "; --rejects names another file"):
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        return self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


@contextmanager
def opened_output(file: Path, *, force: bool) -> Iterator[TextIO]:
    """Yield a text file in UTF-8. It has its name when this is left without an error: whole, and closed to others.

    Raises:
        Refused: if there is one already and ``force`` does not replace it, or if it cannot be written.
    """
    if file == STDIO:
        stream = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")
        yield stream
        stream.detach()  # flushed, and standard output still open
        return
    if file.exists() and not file.is_file():
        raise Refused(f"{file} is no regular file: write - and redirect the output")
    if file.exists() and not force:
        raise Refused(f"{file} is there already: --force replaces it")
    if file.exists() and not _is_replaceable(file, b"username"):
        raise Refused(f"{file} is no export, so not even --force replaces it: give another name")
    file = file.resolve()  # or a link would be replaced, and not what it points at
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with _refusing(f"{file} cannot be written"):
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
                yield stream
                stream.flush()
                os.fsync(descriptor)
            if force:
                draft.replace(file)
            else:
                os.link(draft, file)  # unlike a rename, this never replaces what has come meanwhile
            fsync_folder(file.parent)  # it may be the only copy
        finally:
            draft.unlink(missing_ok=True)


def _is_replaceable(file: Path, word: bytes) -> bool:
    """Whether nothing is lost but what was written by such a command before: a database or a key would be for ever."""
    if not file.is_file():
        return True  # a device, say, which keeps nothing
    with _refusing(f"{file} cannot be read"), file.open("rb") as stream:
        first = stream.readline(1000)
    return not first or word in first


def _status_of(stream: BinaryIO) -> os.stat_result | None:
    try:
        return os.fstat(stream.fileno())
    except OSError:  # no file of the system: a test's
        return None


@contextmanager
def _refusing(what: str, remedy: str = "") -> Iterator[None]:
    """Tell what the system refuses in one line."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{what}: {error.strerror}{remedy}") from None
