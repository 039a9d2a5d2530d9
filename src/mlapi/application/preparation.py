"""Prepare a storage before its first use, even if the database is unavailable at startup."""

import logging
from collections.abc import Callable, Sequence
from datetime import date, datetime

from mlapi.domain.allowances import Allowances, Draw, Drawn
from mlapi.domain.attempts import AttemptCounts, WindowCount
from mlapi.domain.audit import EVERY_ENTRY, AuditEntry, AuditFilter, AuditId, DailyCount
from mlapi.domain.audit_trail import AuditTrail
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.errors import ConfigurationError, RepositoryUnavailableError
from mlapi.domain.links import Link, LinkId
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.managers import (
    Manager,
    ManagerCommand,
    ManagerOutcome,
    Managers,
    ManagerTokenId,
    NonblockingManagers,
)
from mlapi.domain.ports import NonblockingLookup, UserRepository
from mlapi.domain.rules import EVERY_USER, UserFilter
from mlapi.domain.storage import Storage
from mlapi.domain.usage import DailyUsage, UsagePosition, UsageRepository, UsageRow, UserTotal
from mlapi.domain.users import User, UserId, UsernameKey, UserOrder
from mlapi.forks import new_lock, notice_fork

WAIT_SECONDS = 2.0

_logger = logging.getLogger("mlapi")


def check_key(storage: Storage, fingerprints: Sequence[str]) -> None:
    """Check that the passwords in a storage were encrypted with a configured key.

    If the storage has no fingerprint yet, store the first of ``fingerprints``.

    Args:
        storage: must be prepared.
        fingerprints: one for every combination of a configured key and salt, newest first.

    Raises:
        ConfigurationError: if the passwords were encrypted with a different key.
        RepositoryUnavailableError: if the database is unavailable.
    """
    stored = storage.find_fingerprint()
    if stored is None:
        stored = storage.store_fingerprint(fingerprints[0])
    if stored not in fingerprints:
        raise ConfigurationError(
            "secrets.key or secrets.salt does not match this database's passwords: configure the key and salt that"
            " encrypted them, or point database.url at a different database"
        )


class Preparation:
    """An action that must succeed once before a repository is used. It is retried after a failure.

    Args:
        action: raises `ConfigurationError` or `RepositoryUnavailableError` if it fails.
    """

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action
        self._running = new_lock()

    @property
    def is_done(self) -> bool:
        return self._action is None

    def ensure_or_warn(self) -> None:
        """Run the action unless it has already succeeded. Log a warning if the database is unavailable.

        Raises:
            ConfigurationError: if the action raises it.
        """
        try:
            self.ensure()
        except RepositoryUnavailableError as error:
            _logger.warning("%s; starting anyway", error)

    def ensure(self) -> None:
        """Run the action unless it has already succeeded. One thread at a time runs it; the others wait.

        Raises:
            ConfigurationError: if the action raises it.
            RepositoryUnavailableError: if the action raises it, or runs in another thread for longer than
                `WAIT_SECONDS`.
        """
        if self._action is None:
            return
        notice_fork()  # before taking the lock: a noticed fork unlocks it
        if not self._running.acquire(timeout=WAIT_SECONDS):
            raise RepositoryUnavailableError("the database is being opened")
        try:
            if self._action is not None:
                self._action()
                self._action = None
        finally:
            self._running.release()


def prepare_on_first_use(repository: UserRepository, preparation: Preparation) -> UserRepository:
    """Return a repository that runs the preparation before each call, until it has succeeded.

    Use this if the database is unavailable at startup. Calls raise `RepositoryUnavailableError` until it is available.
    """
    if preparation.is_done:
        return repository
    if isinstance(repository, NonblockingLookup):
        return NonblockingPreparedRepository(repository, repository, preparation)
    return PreparedRepository(repository, preparation)


def prepare_counts_on_first_use(counts: AttemptCounts, preparation: Preparation) -> AttemptCounts:
    """Do the same as `prepare_on_first_use` for counts."""
    return counts if preparation.is_done else PreparedAttemptCounts(counts, preparation)


class PreparedAttemptCounts:
    """`AttemptCounts` that run a `Preparation` before each call, until it has succeeded."""

    def __init__(self, counts: AttemptCounts, preparation: Preparation) -> None:
        self._counts = counts
        self._preparation = preparation

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        self._preparation.ensure()
        return self._counts.read(keys)

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        self._preparation.ensure()
        return self._counts.add(keys, window_seconds=window_seconds)


class PreparedUsage:
    """A `UsageRepository` that runs a `Preparation` before each call, until it has succeeded."""

    def __init__(self, usage: UsageRepository, preparation: Preparation) -> None:
        self._usage = usage
        self._preparation = preparation

    def add(self, rows: Sequence[UsageRow]) -> None:
        self._prepared().add(rows)

    def list_page(
        self,
        *,
        first_day: date | None = None,
        last_day: date | None = None,
        user_id: UserId | None = None,
        after: UsagePosition | None = None,
        limit: int,
    ) -> list[UsageRow]:
        return self._prepared().list_page(
            first_day=first_day, last_day=last_day, user_id=user_id, after=after, limit=limit
        )

    def sum_per_day(self, *, first_day: date, last_day: date, user_id: UserId | None = None) -> list[DailyUsage]:
        return self._prepared().sum_per_day(first_day=first_day, last_day=last_day, user_id=user_id)

    def sum_per_user(
        self,
        *,
        first_day: date,
        last_day: date,
        user_id: UserId | None = None,
        after: UserId | None = None,
        limit: int,
    ) -> list[UserTotal]:
        return self._prepared().sum_per_user(
            first_day=first_day, last_day=last_day, user_id=user_id, after=after, limit=limit
        )

    def list_top_users(self, *, first_day: date, last_day: date, limit: int) -> list[UserTotal]:
        return self._prepared().list_top_users(first_day=first_day, last_day=last_day, limit=limit)

    def last_seen(self, user_ids: Sequence[UserId]) -> dict[UserId, datetime]:
        return self._prepared().last_seen(user_ids)

    def purge(self, *, before: date, limit: int) -> int:
        return self._prepared().purge(before=before, limit=limit)

    def _prepared(self) -> UsageRepository:
        self._preparation.ensure()
        return self._usage


class PreparedAllowances:
    """`Allowances` that run a `Preparation` before each call, until it has succeeded."""

    def __init__(self, allowances: Allowances, preparation: Preparation) -> None:
        self._allowances = allowances
        self._preparation = preparation

    def draw(self, requests: Sequence[Draw], *, commit_by: float | None = None) -> list[Drawn | None]:
        self._preparation.ensure()
        return self._allowances.draw(requests, commit_by=commit_by)

    def read(self, requests: Sequence[Draw]) -> list[Drawn | None]:
        self._preparation.ensure()
        return self._allowances.read(requests)


def prepare_managers_on_first_use(managers: Managers, preparation: Preparation) -> Managers:
    """Return managers that run the preparation before each call, until it has succeeded."""
    if preparation.is_done:
        return managers
    if isinstance(managers, NonblockingManagers):
        return NonblockingPreparedManagers(managers, managers, preparation)
    return PreparedManagers(managers, preparation)


class PreparedManagers:
    """`Managers` that run a `Preparation` before each call, until it has succeeded."""

    def __init__(self, managers: Managers, preparation: Preparation) -> None:
        self._managers = managers
        self._preparation = preparation

    def apply(self, command: ManagerCommand) -> ManagerOutcome:
        return self._prepared().apply(command)

    def find_many(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        return self._prepared().find_many(token_ids)

    def find(self, name: str) -> Manager | None:
        return self._prepared().find(name)

    def list_all(self) -> list[Manager]:
        return self._prepared().list_all()

    def _prepared(self) -> Managers:
        self._preparation.ensure()
        return self._managers


class NonblockingPreparedManagers(PreparedManagers):
    """`PreparedManagers` that are also `NonblockingManagers`."""

    def __init__(self, managers: Managers, lookup: NonblockingManagers, preparation: Preparation) -> None:
        super().__init__(managers, preparation)
        self._lookup = lookup

    def find_many_nowait(self, token_ids: Sequence[ManagerTokenId]) -> list[Manager | None]:
        if not self._preparation.is_done:
            raise RepositoryUnavailableError("the database is not prepared yet")
        return self._lookup.find_many_nowait(token_ids)


class PreparedRepository:
    """A `UserRepository` that runs a `Preparation` before each call, until it has succeeded."""

    def __init__(self, repository: UserRepository, preparation: Preparation) -> None:
        self._repository = repository
        self._preparation = preparation
        self.audit = PreparedAuditTrail(repository, preparation)
        self.links = PreparedLinks(repository, preparation)

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return self._prepared().apply(commands, commit_by=commit_by)

    def get(self, user_id: UserId) -> User:
        return self._prepared().get(user_id)

    def find(self, key: UsernameKey) -> User | None:
        return self._prepared().find(key)

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return self._prepared().find_many(keys)

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        return self._prepared().list_page(after=after, limit=limit, matching=matching)

    def list_sorted(
        self,
        order: UserOrder,
        *,
        descending: bool = False,
        after: ListPosition | None = None,
        before: ListPosition | None = None,
        limit: int,
        matching: UserFilter = EVERY_USER,
    ) -> list[ListedUser]:
        return self._prepared().list_sorted(
            order, descending=descending, after=after, before=before, limit=limit, matching=matching
        )

    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        return self._prepared().find_by_prefix(prefix, limit=limit)

    def find_by_email(self, email: str, *, limit: int) -> list[User]:
        return self._prepared().find_by_email(email, limit=limit)

    def count(self, matching: UserFilter = EVERY_USER, *, limit: int | None = None) -> int:
        return self._prepared().count(matching, limit=limit)

    def count_states(self, at: datetime) -> StateCounts:
        return self._prepared().count_states(at)

    def count_registrations(self, *, since: datetime) -> dict[date, int]:
        return self._prepared().count_registrations(since=since)

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return self._prepared().find_principals(ids)

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        return self._prepared().list_api_keys(user_id)

    def check(self) -> None:
        self._prepared().check()

    def _prepared(self) -> UserRepository:
        self._preparation.ensure()
        return self._repository


class NonblockingPreparedRepository(PreparedRepository):
    """A `PreparedRepository` that is also a `NonblockingLookup`."""

    def __init__(self, repository: UserRepository, lookup: NonblockingLookup, preparation: Preparation) -> None:
        super().__init__(repository, preparation)
        self._lookup = lookup

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return self._prepared_lookup().find_principals_nowait(ids)

    def find_many_nowait(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return self._prepared_lookup().find_many_nowait(keys)

    def _prepared_lookup(self) -> NonblockingLookup:
        if not self._preparation.is_done:
            raise RepositoryUnavailableError("the database is not prepared yet")
        return self._lookup


class PreparedAuditTrail:
    """The audit trail of a `PreparedRepository`."""

    def __init__(self, repository: UserRepository, preparation: Preparation) -> None:
        self._repository = repository
        self._preparation = preparation

    def list_page(
        self,
        *,
        after: AuditId | None = None,
        newer_than: AuditId | None = None,
        limit: int,
        matching: AuditFilter = EVERY_ENTRY,
    ) -> list[AuditEntry]:
        return self._prepared().list_page(after=after, newer_than=newer_than, limit=limit, matching=matching)

    def count_bulk(self, bulk_ids: Sequence[str], *, limit: int) -> list[int]:
        return self._prepared().count_bulk(bulk_ids, limit=limit)

    def find_removals(self, user_ids: Sequence[UserId]) -> list[AuditEntry]:
        return self._prepared().find_removals(user_ids)

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        return self._prepared().count_per_day(since=since)

    def purge(self, *, before: datetime, limit: int) -> int:
        return self._prepared().purge(before=before, limit=limit)

    def _prepared(self) -> AuditTrail:
        self._preparation.ensure()
        return self._repository.audit


class PreparedLinks:
    """The links of a `PreparedRepository`."""

    def __init__(self, repository: UserRepository, preparation: Preparation) -> None:
        self._repository = repository
        self._preparation = preparation

    def find(self, link_id: LinkId) -> Link | None:
        self._preparation.ensure()
        return self._repository.links.find(link_id)

    def purge(self, *, before: datetime, limit: int) -> int:
        self._preparation.ensure()
        return self._repository.links.purge(before=before, limit=limit)
