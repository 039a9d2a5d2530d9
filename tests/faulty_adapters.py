"""Adapters with one fault each. The contract suites must detect every one of them."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi import (
    AuditEntry,
    Command,
    InvalidTokenError,
    IssuedToken,
    Outcome,
    TooManyAttemptsError,
    User,
    UserId,
    Users,
)
from mlapi.adapters.memory import InMemoryAuditTrail, InMemoryLinks
from mlapi.domain.attempts import Attempt
from mlapi.domain.commands import Register, Rejection, UpdateUser, UserChange
from mlapi.domain.credentials import Principal, PrincipalId, TokenClaims
from mlapi.domain.expiry import Extension
from mlapi.domain.links import RedeemLink
from mlapi.domain.lists import ListedUser, ListPosition
from mlapi.domain.managers import ManagerIdentity
from mlapi.domain.rules import EVERY_USER, UserFilter
from mlapi.domain.users import EncryptedPassword, UsernameKey, UserOrder
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.client import Client
from mlapi.testing import (
    InMemoryTokens,
    InMemoryUserRepository,
    PlainCipher,
    UnlimitedAttempts,
)

# --- users


class ReusingIds(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes = super().apply(commands, commit_by=commit_by)
        self._last_id = max(self._users, default=0)
        return outcomes


class CaseSensitive(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return super().apply([self._keep_case(command) for command in commands], commit_by=commit_by)

    def _keep_case(self, command: Command) -> Command:
        if isinstance(command, Register):
            object.__setattr__(command, "username_key", UsernameKey(command.username))
        return command


class StoppingAtARejection(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for command in commands:
            outcomes += super().apply([command], commit_by=commit_by)
            if isinstance(outcomes[-1], Rejection):
                break
        return outcomes


class RegisteringFirst(InMemoryUserRepository):
    """Applies registrations before the other commands of a batch."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        order = sorted(range(len(commands)), key=lambda number: not isinstance(commands[number], Register))
        outcomes = super().apply([commands[number] for number in order], commit_by=commit_by)
        return [outcome for _, outcome in sorted(zip(order, outcomes, strict=True), key=lambda pair: pair[0])]


class CachingUsers(InMemoryUserRepository):
    """Caches each user when first read, and therefore returns outdated users."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[UserId, User] = {}

    def get(self, user_id: UserId) -> User:
        return self._cache.setdefault(user_id, super().get(user_id))


class CachingPrincipals(InMemoryUserRepository):
    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[PrincipalId, Principal | None] = {}

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return [self._cache.setdefault(id_, super().find_principals([id_])[0]) for id_ in ids]


class IgnoringTheDeadline(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return super().apply(commands)


class ApplyingBeforeTheDeadlineCheck(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        super().apply(commands[:-1])
        return super().apply(commands, commit_by=commit_by)


class ShortPages(InMemoryUserRepository):
    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        return super().list_page(after=after, limit=limit - 1, matching=matching)


class RepeatingTheLastUser(InMemoryUserRepository):
    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        return super().list_page(after=UserId(after - 1), limit=limit, matching=matching)


class SortingByIdOnly(InMemoryUserRepository):
    def list_sorted(self, order: UserOrder, **options: Any) -> list[ListedUser]:
        return super().list_sorted("id" if order == "name" else order, **options)


class SortedPagesThatNeverEnd(InMemoryUserRepository):
    """Ignores ``after`` if its user has been removed."""

    def list_sorted(self, order: UserOrder, *, after: ListPosition | None = None, **options: Any) -> list[ListedUser]:
        return super().list_sorted(order, after=after if after and self.has(after.user_id) else None, **options)


class UnfilteredSorting(InMemoryUserRepository):
    def list_sorted(self, order: UserOrder, *, matching: UserFilter = EVERY_USER, **options: Any) -> list[ListedUser]:
        return super().list_sorted(order, **options)


class ForgettingExpiry(InMemoryUserRepository):
    """Registers users without their expiry."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        kept = [
            attrs.evolve(command, expires_datetime=None) if isinstance(command, Register) else command
            for command in commands
        ]
        return super().apply(kept, commit_by=commit_by)


class KeepingTheOldName(InMemoryUserRepository):
    """Finds renamed users by their old name only."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        before = dict(self._ids)
        outcomes = super().apply(commands, commit_by=commit_by)
        if any(isinstance(outcome, UserChange) for outcome in outcomes):
            self._ids = before
        return outcomes


class ExtendingFromNow(InMemoryUserRepository):
    """Starts every extension from now, so that early renewals lose paid time."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        changed = [
            attrs.evolve(command, expires=command.expires.extend(None, command.at))
            if isinstance(command, UpdateUser) and isinstance(command.expires, Extension)
            else command
            for command in commands
        ]
        return super().apply(changed, commit_by=commit_by)


class IncludingTheInstantOfExpiry(InMemoryUserRepository):
    """Treats access as active at the exact instant of its expiry."""

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        if matching.at is not None:
            matching = attrs.evolve(matching, at=matching.at - timedelta(microseconds=1))
        return super().list_page(after=after, limit=limit, matching=matching)


class FindingPartsOfMetadata(InMemoryUserRepository):
    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        if matching.metadata is None:
            return super().list_page(after=after, limit=limit, matching=matching)
        key, text = matching.metadata
        return [user for user in self._users.values() if text in str(user.metadata.as_dict().get(key, ""))]


class KeepingUsedLinks(InMemoryLinks):
    def remove_of_user(self, user_id: UserId) -> None:
        """Remove nothing."""


class KeepingLinks(InMemoryUserRepository):
    """Keeps links after a change of the e-mail address."""

    def __init__(self) -> None:
        super().__init__()
        self.links = KeepingUsedLinks()


class IgnoringTheEpochOfLinks(InMemoryUserRepository):
    """Lets links outlive the tokens of their user."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        for command in commands:
            link = self.links.find(command.link_id) if isinstance(command, RedeemLink) else None
            if link is not None and link.user_id in self._users:
                self.links.add(attrs.evolve(link, token_epoch=self._users[link.user_id].token_epoch))
        return super().apply(commands, commit_by=commit_by)


class AuditingWithoutChanges(InMemoryAuditTrail):
    def write(self, entry: AuditEntry) -> None:
        super().write(attrs.evolve(entry, changes=None))


class ForgettingChanges(InMemoryUserRepository):
    def __init__(self) -> None:
        super().__init__()
        self.audit = AuditingWithoutChanges()


class FindingPartsOfNames(InMemoryUserRepository):
    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        return self.list_page(after=UserId(0), limit=limit, matching=UserFilter(containing=prefix))


class ComparingTheCaseOfAddresses(InMemoryUserRepository):
    def find_by_email(self, email: str, *, limit: int) -> list[User]:
        return [user for user in self._users.values() if user.email == email][:limit]


class OmittingUnknownNames(InMemoryUserRepository):
    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return [user for user in super().find_many(keys) if user is not None]


class FilteringAfterTheLimit(InMemoryUserRepository):
    """Applies the limit before the filter, so that pages are too short."""

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        return [user for user in super().list_page(after=after, limit=limit) if matching.matches(user)]


class ReorderingUsers(InMemoryUserRepository):
    """Moves updated users to the end of the list."""

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        outcomes = super().apply(commands, commit_by=commit_by)
        for user in outcomes:
            if isinstance(user, User) and user.id in self._users:
                self._users[user.id] = self._users.pop(user.id)
        return outcomes


class TruncatingPasswords(InMemoryUserRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        return super().apply([self._truncate(command) for command in commands], commit_by=commit_by)

    def _truncate(self, command: Command) -> Command:
        if isinstance(command, Register):
            return attrs.evolve(command, password=EncryptedPassword(command.password.value[:255]))
        return command


class AuditingOnlySuccess(InMemoryUserRepository):
    """Writes no audit entries for rejected commands."""

    def __init__(self) -> None:
        super().__init__()
        self.audit = SuccessesOnly()


class SuccessesOnly(InMemoryAuditTrail):
    def write(self, entry: AuditEntry) -> None:
        if entry.outcome == "done":
            super().write(entry)


# --- passwords


class TruncatingAt72Bytes(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        return super().encrypt(self._truncate(password))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return super().matches(self._truncate(password), encrypted)

    def _truncate(self, password: str) -> str:
        return password.encode("utf-8", "surrogatepass")[:72].decode("utf-8", "ignore")


class IgnoringCase(PlainCipher):
    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return encrypted is not None and super().matches(password.lower(), EncryptedPassword(encrypted.value.lower()))


class Normalizing(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        return super().encrypt(unicodedata.normalize("NFC", password))

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return super().matches(unicodedata.normalize("NFC", password), encrypted)


class WithoutSalt(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        return EncryptedPassword(f"plain:00000000:{password}")


class RaisingOnDamage(PlainCipher):
    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        if encrypted is not None and not encrypted.value.startswith("plain:"):
            raise ValueError("unknown format")
        return super().matches(password, encrypted)


class MatchingWithoutAPassword(PlainCipher):
    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        return (encrypted is None and not password) or super().matches(password, encrypted)


# --- tokens


class NeverExpiring(InMemoryTokens):
    def verify(self, token: str) -> TokenClaims:
        return attrs.evolve(super().verify(token), expires_datetime=datetime.max.replace(tzinfo=UTC))


class RejectingExpiredTokens(InMemoryTokens):
    def verify(self, token: str) -> TokenClaims:
        claims = super().verify(token)
        if claims.expires_datetime <= self._clock():
            raise InvalidTokenError
        return claims


class IgnoringTheEndOfAccess(InMemoryTokens):
    def issue(self, user: User) -> IssuedToken:
        return super().issue(attrs.evolve(user, expires_datetime=None))


class TrimmingTokens(InMemoryTokens):
    def verify(self, token: str) -> TokenClaims:
        return super().verify(token.strip())


class AcceptingEveryIssuer(InMemoryTokens):
    """Accepts the tokens of other issuers, as if all shared one key and did not check the audience."""

    shared: dict[str, TokenClaims] = {}  # noqa: RUF012 - this is the fault

    def __init__(self, *, clock: Callable[[], object]) -> None:
        super().__init__(clock=clock)  # type: ignore[arg-type]  # a SettableClock
        self._issued = self.shared


class ConstantEpoch(InMemoryTokens):
    def issue(self, user: User) -> IssuedToken:
        return super().issue(attrs.evolve(user, token_epoch="0123456789abcdef"))


class LifetimeInMinutes(InMemoryTokens):
    def issue(self, user: User) -> IssuedToken:
        return attrs.evolve(super().issue(user), expires_in=self._lifetime // timedelta(minutes=1))


# --- attempts


class Counting(UnlimitedAttempts):
    """Counts failed and running attempts by `key`, without an end of the window."""

    limit = 3

    def __init__(self) -> None:
        self.failures: Counter[object] = Counter()
        self.running: dict[Attempt, object] = {}

    def key(self, attempt: Attempt) -> object:
        return attempt.username, attempt.address

    def start(self, attempt: Attempt) -> None:
        key = self.key(attempt)
        if self.failures[key] >= self.limit:
            raise TooManyAttemptsError(60)
        if self.failures[key] + list(self.running.values()).count(key) >= self.limit:
            raise TooManyAttemptsError(1, is_final=False)
        if not attempt.is_over:
            self.running[attempt] = key

    def record_failure(self, attempt: Attempt) -> None:
        self.failures[self.key(attempt)] += 1

    def end(self, attempt: Attempt) -> None:
        attempt.is_over = True
        self.running.pop(attempt, None)


class AllowingOneMore(Counting):
    limit = 4


class CountingOnlyNames(Counting):
    def key(self, attempt: Attempt) -> object:
        return attempt.username


class CountingSuccesses(Counting):
    def record_success(self, attempt: Attempt) -> None:
        self.record_failure(attempt)


class CountingEveryStart(Counting):
    def start(self, attempt: Attempt) -> None:
        super().start(attempt)
        self.failures[self.key(attempt)] += 1

    def record_failure(self, attempt: Attempt) -> None:
        pass

    def record_success(self, attempt: Attempt) -> None:
        self.failures[self.key(attempt)] -= 1


class IgnoringRunningAttempts(Counting):
    def start(self, attempt: Attempt) -> None:
        self.running.clear()
        super().start(attempt)


class KeepingSlots(Counting):
    """Counts an attempt as running although it has ended."""

    def start(self, attempt: Attempt) -> None:
        attempt.is_over = False
        super().start(attempt)


class TrustingKnownAddresses(Counting):
    """Exempts a user's known addresses from the limit, which reveals that the user exists."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[object] = set()

    def record_success(self, attempt: Attempt) -> None:
        self.known.add(self.key(attempt))

    def record_failure(self, attempt: Attempt) -> None:
        if self.key(attempt) not in self.known:
            super().record_failure(attempt)


class LockingNames(Counting):
    """Limits each name, at every address."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def start(self, attempt: Attempt) -> None:
        if self.by_name[attempt.username] >= 200:
            raise TooManyAttemptsError(60)
        super().start(attempt)

    def record_failure(self, attempt: Attempt) -> None:
        self.by_name[attempt.username] += 1
        super().record_failure(attempt)


# --- HTTP


class AllowingEveryone(AdminPolicy):
    def identify(self, client: Client) -> ManagerIdentity:
        return self.identity


def allowing_everyone_as_admin(users: Users, admin_policy: AdminPolicy) -> ASGIApp:
    return create_app(users, AllowingEveryone())


def accepting_any_content_type(users: Users, admin_policy: AdminPolicy) -> ASGIApp:
    app = create_app(users, admin_policy)

    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        others = [header for header in scope["headers"] if header[0] != b"content-type"]
        await app({**scope, "headers": [*others, (b"content-type", b"application/json")]}, receive, send)

    return accepting


def allowing_all_origins(users: Users, admin_policy: AdminPolicy) -> ASGIApp:
    app = create_app(users, admin_policy)

    async def allowing(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"access-control-allow-origin", b"*"))
            await send(message)

        await app(scope, receive, send_allowed)

    return allowing


def failing_while_unavailable(users: Users, admin_policy: AdminPolicy) -> ASGIApp:
    app = create_app(users, admin_policy)

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_failure(message: Message) -> None:
            if message.get("status") == 503:
                message["status"] = 500
            await send(message)

        await app(scope, receive, send_failure)

    return failing
