"""Fakes for tests: a clock that stands still, plans and usage, an unavailable database, and a user with a token."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime

import attrs

from mlapi.adapters.memory import InMemoryAllowances, InMemoryUserRepository
from mlapi.application.authentication import Access
from mlapi.application.limits import Limiter
from mlapi.domain.audit import EVERY_ENTRY, AuditEntry, AuditFilter, AuditId, DailyCount
from mlapi.domain.commands import Command, Outcome, RecordApiKeyUse
from mlapi.domain.credentials import ApiKey, ApiKeyId, Principal, PrincipalId
from mlapi.domain.errors import RepositoryUnavailableError
from mlapi.domain.links import Link, LinkId
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.plans import Plans
from mlapi.domain.ports import Clock, PrincipalRepository
from mlapi.domain.rules import EVERY_USER, UserFilter
from mlapi.domain.usage import UsageRow, UsageWriter
from mlapi.domain.users import User, UserId, UsernameKey, UserOrder, to_utc, utc_now


@attrs.define(eq=False)
class SettableClock:
    """A `Clock` that stands still until ``now`` is set to another time, which must have a time zone.

    >>> from datetime import timedelta
    >>> clock = SettableClock()
    >>> clock.now += timedelta(minutes=5)
    >>> clock().isoformat()
    '2026-11-24T12:05:00+00:00'
    """

    now: datetime = attrs.field(default=datetime(2026, 11, 24, 12, tzinfo=UTC), converter=to_utc)

    def __call__(self) -> datetime:
        return self.now


@attrs.define(eq=False)
class ImmediateUsage:
    """A `UsageRecorder` that stores usage and the last use of API keys immediately.

    Args:
        usage: stores the usage.
        keys: stores the last use of API keys. By default, it is not stored.
    """

    usage: UsageWriter
    keys: PrincipalRepository | None = None

    def record(self, user_id: UserId, key_id: ApiKeyId | None, at: datetime, requests: int = 1, units: int = 0) -> None:
        day = to_utc(at).date()
        row = UsageRow(day=day, user_id=user_id, key_id=key_id, requests=requests, units=units, seen_datetime=at)
        self.usage.add([row])

    def record_key_use(self, key: ApiKey, at: datetime) -> None:
        if self.keys is not None:
            self.keys.apply([RecordApiKeyUse(key_id=key.id, at=at)])


def make_plans(plans: Mapping[str, Mapping[str, int]], *, default_plan: str | None = None) -> Plans:
    """Return plans, given the content of the settings ``plans`` and ``default_plan``.

    >>> plans = make_plans({"free": {"per_minute": 60}}, default_plan="free")
    >>> [str(allowance) for allowance in plans.find(None).allowances]
    ['60 per minute']
    """
    # Imported here, because the configuration needs libraries that a test without plans does not.
    from mlapi.config.plans import make_plans as make_configured_plans  # noqa: PLC0415
    from mlapi.config.settings import PlanSettings, Settings  # noqa: PLC0415

    settings = {name: PlanSettings(**allowances) for name, allowances in plans.items()}
    return make_configured_plans(Settings(plans=settings, default_plan=default_plan))


def make_limiter(repository: InMemoryUserRepository, plans: Plans, *, clock: Clock = utc_now) -> Limiter:
    """Return a limiter that keeps its counts in memory. The clock decides when its windows end."""

    def timestamp() -> float:
        return clock().timestamp()

    return Limiter(InMemoryAllowances(repository.has, clock=timestamp), lambda: plans, monotonic=timestamp)


class UnavailableAuditTrail:
    """An `AuditTrail` that always raises `RepositoryUnavailableError`."""

    def list_page(
        self,
        *,
        after: AuditId | None = None,
        newer_than: AuditId | None = None,
        limit: int,
        matching: AuditFilter = EVERY_ENTRY,
    ) -> list[AuditEntry]:
        raise RepositoryUnavailableError("simulated outage")

    def count_bulk(self, bulk_ids: Sequence[str], *, limit: int) -> list[int]:
        raise RepositoryUnavailableError("simulated outage")

    def find_removals(self, user_ids: Sequence[UserId]) -> list[AuditEntry]:
        raise RepositoryUnavailableError("simulated outage")

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        raise RepositoryUnavailableError("simulated outage")

    def purge(self, *, before: datetime, limit: int) -> int:
        raise RepositoryUnavailableError("simulated outage")


class UnavailableLinks:
    """A `LinkRepository` that always raises `RepositoryUnavailableError`."""

    def find(self, link_id: LinkId) -> Link | None:
        raise RepositoryUnavailableError("simulated outage")

    def purge(self, *, before: datetime, limit: int) -> int:
        raise RepositoryUnavailableError("simulated outage")


class UnavailableRepository:
    """A `UserRepository` that always raises `RepositoryUnavailableError`."""

    audit = UnavailableAuditTrail()
    links = UnavailableLinks()

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        raise RepositoryUnavailableError("simulated outage")

    def get(self, user_id: UserId) -> User:
        raise RepositoryUnavailableError("simulated outage")

    def find(self, key: UsernameKey) -> User | None:
        raise RepositoryUnavailableError("simulated outage")

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        raise RepositoryUnavailableError("simulated outage")

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        raise RepositoryUnavailableError("simulated outage")

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
        raise RepositoryUnavailableError("simulated outage")

    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        raise RepositoryUnavailableError("simulated outage")

    def find_by_email(self, email: str, *, limit: int) -> list[User]:
        raise RepositoryUnavailableError("simulated outage")

    def count(self, matching: UserFilter = EVERY_USER, *, limit: int | None = None) -> int:
        raise RepositoryUnavailableError("simulated outage")

    def count_states(self, at: datetime) -> StateCounts:
        raise RepositoryUnavailableError("simulated outage")

    def count_registrations(self, *, since: datetime) -> dict[date, int]:
        raise RepositoryUnavailableError("simulated outage")

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        raise RepositoryUnavailableError("simulated outage")

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        raise RepositoryUnavailableError("simulated outage")

    def check(self) -> None:
        raise RepositoryUnavailableError("simulated outage")


@attrs.frozen
class LoggedInUser:
    """A user with a token, which may be invalid."""

    user: User
    token: str = attrs.field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authenticate a request with this token."""
        return {"Authorization": f"Bearer {self.token}"}


def register_and_log_in(access: Access, username: str) -> LoggedInUser:
    """Register a user with this name and return it with a token."""
    users = access.authenticator.users
    user = users.register(username=username, password=f"password of {username}", email=f"{username}@example.com")
    return LoggedInUser(user, access.authenticator.log_in(username=username, password=f"password of {username}").token)
