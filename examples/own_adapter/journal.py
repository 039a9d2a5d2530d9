"""An adapter of one's own: users in a journal, a file with a line of JSON for each batch of changes.

A change is a value that decides nothing by chance, so the changes are all that has to be kept: applied again in the
same order they leave the same users. Reads are answered from memory.

It promises what the port asks of one process: what `apply` has returned is on the disk, and a line that a crash cut
short, which nobody was told of, is dropped. It does not promise more: one process at a time (by a lock of POSIX), all
users in memory, and a file that only grows, in which the addresses and stored passwords of removed users remain.
"""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import attrs
import msgspec

from mlapi import Command, ConfigurationError, Outcome, RepositoryUnavailableError
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryUserRepository
from mlapi.domain.users import to_utc


@attrs.frozen(kw_only=True)
class Purge:
    """Entries of the audit trail are forgotten, which is to be kept like a change."""

    before: datetime = attrs.field(converter=to_utc)
    limit: int


Entry = Command | Purge
KINDS = {kind.__name__: kind for kind in get_args(Entry)}


class Journal:
    """A file with a line of JSON for each batch of entries, which is made if it is missing.

    Raises:
        ConfigurationError: if another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.touch(0o600)
        self._file = path.open("ab", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigurationError(f"{path} is open in another process: stop that one first") from None
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # a file that is new is in no folder yet, after a crash
        os.close(folder)

    def entries(self) -> list[Entry]:
        """Return what was written, and drop a line that was cut short.

        Raises:
            ConfigurationError: if a line is damaged.
        """
        written = self._path.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        return [entry for number, line in enumerate(whole.splitlines(), 1) for entry in self._batch(number, line)]

    @contextmanager
    def kept(self, entries: Sequence[Entry], commit_by: float | None = None) -> Iterator[None]:
        """Enter once they are on the disk, and let nobody else do so until what they say is done.

        Raises:
            RepositoryUnavailableError: if it is too late, or the file cannot be written, now or ever again.
        """
        named = [[type(entry).__name__, attrs.asdict(entry)] for entry in entries]
        line = json.dumps(named, default=datetime.isoformat).encode("ascii") + b"\n"
        with self._lock:
            self.check()
            if commit_by is not None and time.monotonic() > commit_by:
                raise RepositoryUnavailableError("too late to commit")
            try:
                self._write(line)
            except OSError as error:
                self.close()  # how much of it is on the disk, only who opens it anew can see
                raise RepositoryUnavailableError(f"the journal cannot be written: {error.strerror}") from error
            yield

    def check(self) -> None:
        if self._file.closed:
            raise RepositoryUnavailableError("the journal is closed")

    def close(self) -> None:
        self._file.close()

    def _write(self, line: bytes) -> None:
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file)

    def _batch(self, number: int, line: bytes) -> list[Entry]:
        try:
            return [_entry(KINDS[kind], values) for kind, values in json.loads(line)]
        except (KeyError, TypeError, ValueError):
            raise ConfigurationError(f"line {number} of {self._path} is damaged: put a copy in its place") from None


class JournaledAuditTrail(InMemoryAuditTrail):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._journal.kept([Purge(before=before, limit=limit)]):
            return super().purge(before=before, limit=limit)


class JournaledUserRepository(InMemoryUserRepository):
    """A `UserRepository` over a journal that is open."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self.audit = JournaledAuditTrail(journal)
        for entry in journal.entries():
            if isinstance(entry, Purge):
                InMemoryAuditTrail.purge(self.audit, before=entry.before, limit=entry.limit)
            else:
                super().apply([entry])

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        with self._journal.kept(commands, commit_by):
            return super().apply(commands)

    def check(self) -> None:
        self._journal.check()


def _entry(kind: type[Entry], values: dict[str, Any]) -> Entry:
    fields = [field for field in attrs.fields(kind) if field.init and field.name in values]
    return kind(**{field.name: msgspec.convert(values[field.name], field.type) for field in fields})
