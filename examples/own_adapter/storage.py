"""A custom backend that stores everything in a journal file.

It meets the contract for a single process: commands are on disk before `apply` returns. It has limitations. Only one
process can open the file. All users are kept in memory. The file only grows, so it still contains the stored passwords
and e-mail addresses of removed users. Login attempts, logins and sessions are only kept in memory: a restart resets
the counts, forgets the logins and signs everyone out.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from examples.own_adapter.journal import (
    Entry,
    Journal,
    JournaledAllowances,
    JournaledUsage,
    JournaledUserRepository,
    SetFingerprint,
    read_entries,
)

from mlapi import ConfigurationError, UserId
from mlapi.adapters.memory import InMemoryAttempts, InMemoryLogins, InMemorySessions
from mlapi.domain.inspection import Inspection, count_plans

PREFIX = "journal://"
REVISION = "1"


class JournalStorage:
    """A `Storage` in a journal file.

    Args:
        path: the journal file. `prepare` creates it.
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path.absolute())
        self.usage = JournaledUsage(self._journal)
        self.users = JournaledUserRepository(self._journal, self.usage)
        self.managers = self.users.managers
        self.allowances = JournaledAllowances(self._journal, self.users.has)
        self.attempts = InMemoryAttempts()
        self.sessions = InMemorySessions()
        self.logins = InMemoryLogins(self.users.has)
        self.outbox = self.users.outbox
        self.files = (self._journal.path,)
        self.secrets_folder = self._journal.path.parent
        self._lock = threading.Lock()
        self._is_open = False
        self._fingerprint: str | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return the storage for a URL such as ``journal://users.jsonl`` or ``journal:///srv/users.jsonl``."""
        path = Path(url.removeprefix(PREFIX))
        if not url.startswith(PREFIX) or path.is_dir() or not path.parent.is_dir():
            raise ConfigurationError(f"database.url: write {PREFIX} and the path of a file in an existing folder")
        return cls(path)

    def find_fingerprint(self) -> str | None:
        if self._journal.path.exists():
            self._open()
        return self._fingerprint

    def store_fingerprint(self, fingerprint: str) -> str:
        with self._lock:
            if self._fingerprint is None:
                self._set_fingerprint(fingerprint)
            return self._fingerprint or fingerprint

    def replace_fingerprint(self, fingerprint: str) -> None:
        with self._lock:
            self._set_fingerprint(fingerprint)

    def prepare(self, *, may_upgrade: bool) -> None:  # noqa: ARG002 - part of the port
        self._open()  # there is only one format, so nothing needs an upgrade

    def upgrade(self) -> tuple[str | None, str]:
        self._open()
        return REVISION, REVISION

    def inspect(self, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:  # noqa: ARG002 - part of the port
        if not self._journal.path.exists():
            raise ConfigurationError(f"the journal {self._journal.path} does not exist")
        entries, _ = read_entries(self._journal.path)  # works even while a service has the file open
        repository = JournaledUserRepository(self._journal)
        repository.replay(entries)
        users = repository.list_page(after=UserId(0), limit=repository.count())
        return Inspection(
            revision=REVISION,
            newest_revision=REVISION,
            fingerprint=_last_fingerprint(entries),
            users=len(users),
            plans=count_plans(users),
            managers=tuple(repository.managers.list_all()),
            latest_change=max((user.updated_datetime for user in users), default=None),
        )

    def close(self) -> None:
        self._journal.close()

    def _open(self) -> None:
        with self._lock:
            if not self._is_open:
                entries = self._journal.open()
                self.users.replay(entries)
                self.usage.replay(entries)
                self.allowances.replay(entries)
                self._fingerprint = _last_fingerprint(entries)
                self._is_open = True

    def _set_fingerprint(self, fingerprint: str) -> None:
        with self._journal.append([SetFingerprint(value=fingerprint)]):
            self._fingerprint = fingerprint


def _last_fingerprint(entries: Iterable[Entry]) -> str | None:
    return next((entry.value for entry in reversed(list(entries)) if isinstance(entry, SetFingerprint)), None)
