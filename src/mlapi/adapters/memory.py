"""In-memory users and tokens, and a cipher that does not encrypt. For demos and tests.

These adapters pass the same contract suites as the others, but all data is lost when the process ends.
"""

import hmac
import logging
import secrets
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Self

import attrs

from mlapi.domain.attempts import Attempt, WindowCount
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount, make_audit_entry
from mlapi.domain.commands import (
    AddApiKey,
    ApiKeyCommand,
    Command,
    Outcome,
    RecordApiKeyUse,
    Register,
    Remove,
    UserCommand,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId, ApiKeyPrincipal, IssuedToken, Principal, PrincipalId, TokenClaims
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    InvalidTokenError,
    RepositoryUnavailableError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.inspection import Inspection
from mlapi.domain.ports import Clock
from mlapi.domain.rules import canonical_username, fold, sort_key
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey, UserOrder, utc_now
from mlapi.forks import new_lock

_URL = "memory://"
_REVISION = "1"
_PURGE_INTERVAL_SECONDS = 10.0

_logger = logging.getLogger("mlapi")


class InMemoryAuditTrail:
    """An `AuditTrail` in memory."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._entries: list[AuditEntry] = []
        self._last_id = 0

    def write(self, entry: AuditEntry) -> None:
        with self._lock:
            self._last_id += 1
            self._entries.append(attrs.evolve(entry, id=AuditId(self._last_id)))

    def list_page(self, *, after: AuditId | None = None, limit: int, user_id: UserId | None = None) -> list[AuditEntry]:
        with self._lock:
            return [
                entry
                for entry in reversed(self._entries)
                if (after is None or entry.id < after) and user_id in {None, entry.user_id}
            ][:limit]

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        with self._lock:
            counts = Counter(
                (entry.at.astimezone(UTC).date(), entry.action)
                for entry in self._entries
                if entry.at >= since and entry.outcome == "done"
            )
        return [DailyCount(day, action, count) for (day, action), count in sorted(counts.items())]

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._lock:
            old = sorted(
                (entry for entry in self._entries if entry.at < before), key=lambda entry: (entry.at, entry.id)
            )[:limit]
            gone = {entry.id for entry in old}
            self._entries = [entry for entry in self._entries if entry.id not in gone]
            return len(gone)


class InMemoryUserRepository:
    """A thread-safe `UserRepository` in memory."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._users: dict[UserId, User] = {}
        self._ids: dict[UsernameKey, UserId] = {}
        self._api_keys: dict[ApiKeyId, ApiKey] = {}
        self._last_id = 0
        self.audit = InMemoryAuditTrail()

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        with self._lock:
            if commit_by is not None and time.monotonic() > commit_by:
                raise RepositoryUnavailableError("too late to commit")
            return [self._apply(command) for command in commands]

    def get(self, user_id: UserId) -> User:
        with self._lock:
            try:
                return self._users[user_id]
            except KeyError:
                raise UserNotFoundError(user_id) from None

    def find(self, key: UsernameKey) -> User | None:
        with self._lock:
            user_id = self._ids.get(key)
            return None if user_id is None else self._users[user_id]

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return [self.find(key) for key in keys]

    def list_page(self, *, after: UserId, limit: int, enabled: bool | None = None, containing: str = "") -> list[User]:
        return self._select(after=after, enabled=enabled, containing=containing)[:limit]

    def list_sorted(
        self,
        order: UserOrder,
        *,
        descending: bool = False,
        after: User | None = None,
        limit: int,
        enabled: bool | None = None,
        containing: str = "",
    ) -> list[User]:
        found = sorted(self._select(enabled=enabled, containing=containing), key=partial(sort_key, order))
        if after is not None:
            keys, last = [sort_key(order, user) for user in found], sort_key(order, after)
            found = found[: bisect_left(keys, last)] if descending else found[bisect_right(keys, last) :]
        return (found[::-1] if descending else found)[:limit]

    def _select(self, *, after: int = 0, enabled: bool | None, containing: str) -> list[User]:
        with self._lock:  # already sorted by id: ids only increase, and a dict keeps its insertion order
            return [
                user
                for user in self._users.values()
                if user.id > after
                and enabled in {None, user.enabled}
                and (containing in fold(user.username) or containing in user.email.lower())
            ]

    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        with self._lock:
            return [user for user in self._users.values() if fold(user.username).startswith(prefix)][:limit]

    def count(self) -> int:
        with self._lock:
            return len(self._users)

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        with self._lock:
            return [self._principal(principal_id) for principal_id in ids]

    def find_principals_nowait(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        return self.find_principals(ids)

    def find_many_nowait(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return self.find_many(keys)

    def list_api_keys(self, user_id: UserId) -> list[ApiKey]:
        self.get(user_id)
        with self._lock:
            found = [key for key in self._api_keys.values() if key.user_id == user_id]
        return sorted(found, key=lambda key: (key.created_datetime, key.id))

    def check(self) -> None:
        """Do nothing: memory is always available."""

    def _principal(self, principal_id: PrincipalId) -> Principal | None:
        if isinstance(principal_id, int):
            return self._users.get(principal_id)
        key = self._api_keys.get(principal_id)
        return None if key is None else ApiKeyPrincipal(key, self._users[key.user_id])

    def _apply(self, command: Command) -> Outcome:
        outcome = (
            self._apply_to_users(command) if isinstance(command, UserCommand) else self._apply_to_api_keys(command)
        )
        if (entry := make_audit_entry(command, outcome)) is not None:
            self.audit.write(entry)
        return outcome

    def _apply_to_users(self, command: UserCommand) -> Outcome:
        if isinstance(command, Register):
            if (existing_id := self._ids.get(command.username_key)) is not None:
                return UserExistsError(existing_id)
            self._last_id += 1
            user = command.as_user(UserId(self._last_id))
            self._ids[command.username_key] = user.id
            self._users[user.id] = user
            return user
        if (stored := self._users.get(command.user_id)) is None:
            return UserNotFoundError(command.user_id)
        if isinstance(command, Remove):
            del self._ids[canonical_username(stored.username)]
            for key in [key for key in self._api_keys.values() if key.user_id == stored.id]:
                del self._api_keys[key.id]
            return self._users.pop(stored.id)
        changed = command.apply_to(stored)
        if isinstance(changed, User):
            self._users[stored.id] = changed
        return changed

    def _apply_to_api_keys(self, command: ApiKeyCommand) -> Outcome:
        if isinstance(command, AddApiKey):
            if command.user_id not in self._users:
                return UserNotFoundError(command.user_id)
            self._api_keys[command.key.id] = command.key
            return command.key
        if (key := self._api_keys.get(command.key_id)) is None:
            return ApiKeyNotFoundError(command.key_id)
        if isinstance(command, RecordApiKeyUse):
            self._api_keys[key.id] = command.apply_to(key)
            return self._api_keys[key.id]
        return self._api_keys.pop(key.id)


class InMemoryAttempts:
    """`AttemptCounts` for one process.

    Args:
        clock: returns seconds since 1970.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = new_lock()
        self._counts: dict[str, WindowCount] = {}
        self._purged_at = clock()

    def read(self, keys: Sequence[str]) -> list[WindowCount]:
        now = self._clock()
        return [self._get(key, now) for key in keys]

    def add(self, keys: Sequence[str], *, window_seconds: float) -> list[WindowCount]:
        with self._lock:
            now = self._clock()
            self._purge(now)
            new_window = WindowCount(0, now + window_seconds)
            for key in keys:
                window = self._counts.get(key, new_window)
                window = window if window.ends_at_timestamp > now else new_window
                self._counts[key] = attrs.evolve(window, count=window.count + 1)
            return [self._counts[key] for key in keys]

    def _get(self, key: str, now: float) -> WindowCount:
        found = self._counts.get(key)
        return WindowCount(0, now) if found is None or found.ends_at_timestamp <= now else found

    def _purge(self, now: float) -> None:
        if now - self._purged_at >= _PURGE_INTERVAL_SECONDS:
            self._purged_at = now
            self._counts = {key: count for key, count in self._counts.items() if count.ends_at_timestamp > now}


class InMemoryStorage:
    """A `Storage` for a single process, for demos and tests. All data is lost when the process ends."""

    files: tuple[Path, ...] = ()
    secrets_folder: Path | None = None

    def __init__(self) -> None:
        self.users = InMemoryUserRepository()
        self.attempts = InMemoryAttempts()
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
            latest_change=max((user.updated_datetime for user in users), default=None),
        )

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class PlainCipher:
    """A fast `PasswordCipher` for tests that stores passwords in plain text."""

    is_costly = False

    def encrypt(self, password: str) -> EncryptedPassword:
        # The contract requires a random part, so that equal passwords have different stored values.
        return EncryptedPassword(f"plain:{secrets.token_hex(4)}:{password}")

    def matches(self, password: str, encrypted: EncryptedPassword | None) -> bool:
        if encrypted is None:
            return False
        scheme, _, salted = encrypted.value.partition(":")
        _, _, stored = salted.partition(":")
        return scheme == "plain" and hmac.compare_digest(_encoded(stored), _encoded(password))

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        return not encrypted.value.startswith("plain:")

    def reencrypt(self, encrypted: EncryptedPassword) -> EncryptedPassword | None:  # noqa: ARG002 - part of the port
        return None  # plain text is not encrypted with a key


class InMemoryTokens:
    """A `TokenIssuer` for a single process that keeps its random tokens in memory.

    Args:
        lifetime: how long a token is valid.
        clock: returns the current time.
    """

    def __init__(self, *, lifetime: timedelta = timedelta(hours=1), clock: Clock = utc_now) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._issued: dict[str, TokenClaims] = {}

    def issue(self, user: User) -> IssuedToken:
        token = secrets.token_urlsafe(32)
        self._issued[token] = TokenClaims(
            user_id=user.id,
            token_epoch=user.token_epoch,
            expires_datetime=self._clock() + self._lifetime,
            token_id=secrets.token_hex(8),
        )
        return IssuedToken(token, round(self._lifetime.total_seconds()))

    def verify(self, token: str) -> TokenClaims:
        claims = self._issued.get(token)
        if claims is None or claims.expires_datetime <= self._clock():
            raise InvalidTokenError
        return claims


class UnlimitedAttempts:
    """An `AttemptLimiter` for tests that allows every attempt."""

    def start(self, attempt: Attempt) -> None:
        """Allow the attempt."""

    def record_failure(self, attempt: Attempt) -> None:
        """Do nothing."""

    def record_success(self, attempt: Attempt) -> None:
        """Do nothing."""

    def end(self, attempt: Attempt) -> None:
        attempt.is_over = True


def _encoded(text: str) -> bytes:
    # A password with a lone surrogate matches nothing, but it must not raise an error.
    return text.encode("utf-8", "surrogatepass")
