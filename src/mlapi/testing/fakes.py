"""Fakes that only a test wants: time that stands still, a database that is away, and somebody who shows a token."""

from collections.abc import Sequence
from datetime import UTC, datetime

import attrs

from mlapi.application.authentication import Access
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, Principal, PrincipalId
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.users import User, UserId, UsernameKey, to_utc


@attrs.define(eq=False)
class SettableClock:
    """A `Clock` that stands still until ``now`` is set, to an aware time.

    >>> from datetime import timedelta
    >>> clock = SettableClock()
    >>> clock.now += timedelta(minutes=5)
    >>> clock().isoformat()
    '2026-11-24T12:05:00+00:00'
    """

    now: datetime = attrs.field(default=datetime(2026, 11, 24, 12, tzinfo=UTC), converter=to_utc)

    def __call__(self) -> datetime:
        return self.now


class UnavailableAuditTrail:
    """An `AuditTrail` whose database is away."""

    def list_page(self, *, after: AuditId | None = None, limit: int, user_id: UserId | None = None) -> list[AuditEntry]:
        raise RepositoryUnavailableError("away")

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        raise RepositoryUnavailableError("away")

    def purge(self, *, before: datetime, limit: int) -> int:
        raise RepositoryUnavailableError("away")


class UnavailableRepository:
    """A `UserRepository` whose database is away: every method raises `RepositoryUnavailableError`."""

    audit = UnavailableAuditTrail()

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        raise RepositoryUnavailableError("away")

    def get(self, user_id: UserId) -> User:
        raise RepositoryUnavailableError("away")

    def find(self, key: UsernameKey) -> User | None:
        raise RepositoryUnavailableError("away")

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        raise RepositoryUnavailableError("away")

    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        raise RepositoryUnavailableError("away")

    def count(self) -> int:
        raise RepositoryUnavailableError("away")

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        raise RepositoryUnavailableError("away")

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        raise RepositoryUnavailableError("away")

    def check(self) -> None:
        raise RepositoryUnavailableError("away")


@attrs.frozen
class LoggedInUser:
    """Somebody who shows a token at the door, whether it lets him in or not."""

    user: User
    token: str = attrs.field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What a request of his carries."""
        return {"Authorization": f"Bearer {self.token}"}


def visitor(access: Access, username: str) -> LoggedInUser:
    """Register a user and log him in."""
    users = access.authenticator.users
    user = users.register(username=username, password=f"password of {username}", email=f"{username}@example.com")
    return LoggedInUser(user, access.authenticator.log_in(username=username, password=f"password of {username}").token)
