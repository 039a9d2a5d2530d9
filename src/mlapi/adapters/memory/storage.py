"""A storage in memory."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Self

from mlapi.adapters.memory.counts import InMemoryAllowances, InMemoryAttempts
from mlapi.adapters.memory.logins import InMemoryLogins
from mlapi.adapters.memory.managers import InMemoryManagers
from mlapi.adapters.memory.sessions import InMemorySessions
from mlapi.adapters.memory.usage import InMemoryUsage
from mlapi.adapters.memory.users import InMemoryUserRepository
from mlapi.domain.errors import (
    ConfigurationError,
)
from mlapi.domain.inspection import Inspection, count_plans
from mlapi.domain.users import UserId
from mlapi.forks import new_lock

_URL = "memory://"
_REVISION = "1"

_logger = logging.getLogger("mlapi")


class InMemoryStorage:
    """A `Storage` for a single process, for demos and tests. All data is lost when the process ends."""

    files: tuple[Path, ...] = ()
    secrets_folder: Path | None = None

    def __init__(self) -> None:
        self.usage = InMemoryUsage()
        self.users = InMemoryUserRepository(self.usage)
        self.managers = InMemoryManagers(self.users.audit)
        self.attempts = InMemoryAttempts()
        self.allowances = InMemoryAllowances(self.users.has)
        self.outbox = self.users.outbox
        self.sessions = InMemorySessions()
        self.logins = InMemoryLogins(self.users.has)
        self._lock = new_lock()
        self._fingerprint: str | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return a new, empty storage.

        Raises:
            ConfigurationError: unless the URL is ``memory://``.
        """
        if url != _URL:
            raise ConfigurationError("database.url: write just memory:// to keep the users in memory")
        return cls()

    def find_fingerprint(self) -> str | None:
        return self._fingerprint

    def store_fingerprint(self, fingerprint: str) -> str:
        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = fingerprint
            return self._fingerprint

    def replace_fingerprint(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def prepare(self, *, may_upgrade: bool) -> None:  # noqa: ARG002 - part of the port
        _logger.warning("database.url is memory://: all users are lost when this process ends")

    def upgrade(self) -> tuple[str | None, str]:
        return _REVISION, _REVISION

    def inspect(self, *, find_password_error: Callable[[str], str | None] | None) -> Inspection:  # noqa: ARG002 - part of the port
        users = self.users.list_page(after=UserId(0), limit=self.users.count())
        return Inspection(
            revision=_REVISION,
            newest_revision=_REVISION,
            fingerprint=self._fingerprint,
            users=len(users),
            plans=count_plans(users),
            managers=tuple(self.managers.list_all()),
            latest_change=max((user.updated_datetime for user in users), default=None),
        )

    def close(self) -> None:
        """Do nothing: there is nothing to close."""
