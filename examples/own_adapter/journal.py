"""Store users in a journal: a file with one line of JSON per batch of commands.

Commands are deterministic: applying them again in the same order restores the same users. The journal therefore stores
only commands, and reads are answered from memory.
"""

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from io import FileIO
from pathlib import Path
from typing import Any, Union, get_args

import attrs
import msgspec

from mlapi import Command, ConfigurationError, Outcome, RepositoryUnavailableError
from mlapi.adapters.memory import (
    InMemoryAllowances,
    InMemoryAuditTrail,
    InMemoryLinks,
    InMemoryManagers,
    InMemoryOutbox,
    InMemoryUsage,
    InMemoryUserRepository,
)
from mlapi.domain.allowances import Draw, Drawn
from mlapi.domain.commands import UNCHANGED, Unchanged
from mlapi.domain.managers import ManagerCommand, ManagerOutcome
from mlapi.domain.outbox import MailId, QueuedMail
from mlapi.domain.plans import Window
from mlapi.domain.usage import UsageRow
from mlapi.domain.users import UserId, to_utc


@attrs.frozen(kw_only=True)
class Purge:
    """Delete old entries from the audit trail."""

    before: datetime = attrs.field(converter=to_utc)
    limit: int


@attrs.frozen(kw_only=True)
class PurgeUsage:
    """Delete the usage of old days."""

    before: date
    limit: int


@attrs.frozen(kw_only=True)
class PurgeLinks:
    """Delete links that have expired."""

    before: datetime = attrs.field(converter=to_utc)
    limit: int


@attrs.frozen(kw_only=True)
class SetFingerprint:
    """Store the fingerprint of the key that encrypts the passwords."""

    value: str


@attrs.frozen(kw_only=True)
class TimedDraw:
    """A draw from an allowance, and when it was made, in seconds since 1970."""

    draw: Draw
    timestamp: float


@attrs.frozen(kw_only=True)
class ChangeOutbox:
    """Add, change and remove mail in the outbox."""

    added: tuple[QueuedMail, ...] = ()
    changed: tuple[QueuedMail, ...] = ()
    removed: tuple[MailId, ...] = ()


Entry = (
    Command | ManagerCommand | Purge | PurgeLinks | PurgeUsage | UsageRow | SetFingerprint | TimedDraw | ChangeOutbox
)
KINDS = {kind.__name__: kind for kind in get_args(Entry)}


def read_entries(path: Path) -> tuple[list[Entry], int]:
    """Return the entries of a journal and the total size of its complete lines in bytes. Does not change the file.

    A crash can leave an incomplete last line. Its commands were never acknowledged, so it is skipped.

    Raises:
        ConfigurationError: if a line is damaged.
    """
    written = path.read_bytes()
    complete = written[: written.rfind(b"\n") + 1]
    entries: list[Entry] = []
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            entries += [_parse_entry(KINDS[kind], values) for kind, values in json.loads(line)]
        except (KeyError, TypeError, ValueError, msgspec.ValidationError):  # the last: no ValueError in msgspec 0.18
            raise ConfigurationError(f"line {number} of {path} is damaged: restore the file from a backup") from None
    return entries, len(complete)


class Journal:
    """A journal file that only one process can open at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: FileIO | None = None

    def open(self) -> list[Entry]:
        """Open or create the file, remove an incomplete last line, and return the entries.

        Raises:
            ConfigurationError: if another process has the file open, or a line is damaged.
        """
        self.path.touch(0o600)
        file = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entries, size = read_entries(self.path)
            file.truncate(size)
        except BlockingIOError:
            file.close()
            raise ConfigurationError(f"{self.path} is open in another process: stop that process first") from None
        except ConfigurationError:
            file.close()
            raise
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)  # otherwise, a new file could be missing after a crash
        os.close(folder)
        self._file = file
        return entries

    @contextmanager
    def append(self, entries: Sequence[Entry], commit_by: float | None = None) -> Iterator[None]:
        """Write entries to disk, then run the ``with`` block, which applies them in memory.

        Raises:
            RepositoryUnavailableError: if ``commit_by`` has passed, or the file cannot be written.
        """
        named = [[type(entry).__name__, attrs.asdict(entry, filter=_is_given)] for entry in entries]
        line = json.dumps(named, default=_encode).encode("ascii") + b"\n"
        with self._lock:
            file = self.require_file()
            if commit_by is not None and time.monotonic() > commit_by:
                raise RepositoryUnavailableError("too late to commit")
            try:
                _write(file, line)
            except OSError as error:
                # Part of the line may be on disk. Opening the file again removes it.
                self.close()
                raise RepositoryUnavailableError(f"the journal cannot be written: {error.strerror}") from error
            yield

    def require_file(self) -> FileIO:
        """Return the open file; raise `RepositoryUnavailableError` if it is closed."""
        if self._file is None or self._file.closed:
            raise RepositoryUnavailableError("the journal is closed")
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class JournaledAuditTrail(InMemoryAuditTrail):
    """An `AuditTrail` that writes each purge to a journal before it deletes the entries in memory."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._journal.append([Purge(before=before, limit=limit)]):
            return super().purge(before=before, limit=limit)


class JournaledLinks(InMemoryLinks):
    """A `LinkRepository` that writes each purge to a journal before it deletes the links in memory."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._journal.append([PurgeLinks(before=before, limit=limit)]):
            return super().purge(before=before, limit=limit)


class JournaledUsage(InMemoryUsage):
    """A `UsageRepository` that writes rows to a journal before it adds them in memory."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def replay(self, entries: Iterable[Entry]) -> None:
        """Apply entries that were read from the journal."""
        for entry in entries:
            if isinstance(entry, UsageRow):
                super().add([entry])
            elif isinstance(entry, PurgeUsage):
                super().purge(before=entry.before, limit=entry.limit)

    def add(self, rows: Sequence[UsageRow]) -> None:
        with self._journal.append(rows):
            super().add(rows)

    def purge(self, *, before: date, limit: int) -> int:
        with self._journal.append([PurgeUsage(before=before, limit=limit)]):
            return super().purge(before=before, limit=limit)


class JournaledManagers(InMemoryManagers):
    """`Managers` that write commands to a journal before they apply them in memory."""

    def __init__(self, journal: Journal, audit: InMemoryAuditTrail) -> None:
        super().__init__(audit)
        self._journal = journal

    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        with self._journal.append([command]):
            return super().apply(command)


class JournaledOutbox(InMemoryOutbox):
    """An `Outbox` that writes changes to a journal before it makes them in memory."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def change(
        self, *, added: Sequence[QueuedMail] = (), changed: Sequence[QueuedMail] = (), removed: Sequence[MailId] = ()
    ) -> None:
        change = ChangeOutbox(added=tuple(added), changed=tuple(changed), removed=tuple(removed))
        with self._journal.append([change]):
            super().change(added=added, changed=changed, removed=removed)


class JournaledUserRepository(InMemoryUserRepository):
    """A `UserRepository` that writes commands to a journal before it applies them in memory."""

    def __init__(self, journal: Journal, usage: InMemoryUsage | None = None) -> None:
        super().__init__(usage)
        self._journal = journal
        self.audit = JournaledAuditTrail(journal)
        self.managers = JournaledManagers(journal, self.audit)
        self.outbox = JournaledOutbox(journal)
        self.links = JournaledLinks(journal)

    def replay(self, entries: Iterable[Entry]) -> None:
        """Apply entries that were read from the journal."""
        for entry in entries:
            if isinstance(entry, ChangeOutbox):
                InMemoryOutbox.change(self.outbox, **attrs.asdict(entry, recurse=False))
            elif isinstance(entry, Purge):
                InMemoryAuditTrail.purge(self.audit, before=entry.before, limit=entry.limit)
            elif isinstance(entry, ManagerCommand):
                InMemoryManagers.apply(self.managers, entry)
            elif isinstance(entry, PurgeLinks):
                InMemoryLinks.purge(self.links, before=entry.before, limit=entry.limit)
            elif not isinstance(entry, PurgeUsage | UsageRow | SetFingerprint | TimedDraw):
                super().apply([entry])

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        with self._journal.append(commands, commit_by):
            return super().apply(commands)

    def _queue_mails(self, mails: Sequence[QueuedMail]) -> None:
        InMemoryOutbox.change(self.outbox, added=mails)  # the journal contains the commands that cause the mail

    def check(self) -> None:
        self._journal.require_file()


class JournaledAllowances(InMemoryAllowances):
    """`Allowances` that write draws to a journal before they apply them in memory."""

    def __init__(self, journal: Journal, has_user: Callable[[UserId], bool]) -> None:
        super().__init__(has_user, clock=lambda: self._timestamp)
        self._journal = journal
        self._timestamp = 0.0

    def replay(self, entries: Iterable[Entry]) -> None:
        """Apply draws that were read from the journal."""
        for entry in entries:
            if isinstance(entry, TimedDraw):
                self._timestamp = entry.timestamp
                super().draw([entry.draw])

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        timestamp = time.time()
        entries = [TimedDraw(draw=request, timestamp=timestamp) for request in requests]
        with self._journal.append(entries, commit_by):
            self._timestamp = timestamp
            return super().draw(requests)

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        self._timestamp = time.time()
        return super().draw([attrs.evolve(request, wanted=0) for request in requests])


def _is_given(_field: "attrs.Attribute[Any]", value: object) -> bool:
    return value is not UNCHANGED


def _encode(value: date | Window) -> str:
    return value.value if isinstance(value, Window) else value.isoformat()


def _write(file: FileIO, line: bytes) -> None:
    if file.write(line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


def _parse_entry(kind: type[Entry], values: dict[str, Any]) -> Entry:
    fields = [field for field in attrs.fields(kind) if field.init and field.name in values]
    return kind(**{field.name: msgspec.convert(values[field.name], _type_if_given(field)) for field in fields})


def _type_if_given(field: "attrs.Attribute[Any]") -> Any:  # noqa: ANN401 - a type or a union of types
    kinds = get_args(field.type)
    return Union[tuple(kind for kind in kinds if kind is not Unchanged)] if Unchanged in kinds else field.type  # noqa: UP007 - computed
