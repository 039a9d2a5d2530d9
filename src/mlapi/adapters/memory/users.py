"""Users, their API keys and the audit trail in memory."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from functools import cmp_to_key
from typing import Any, get_args

import attrs

from mlapi.adapters.memory.outbox import InMemoryOutbox
from mlapi.adapters.memory.usage import InMemoryUsage
from mlapi.domain.audit import EVERY_ENTRY, AuditEntry, AuditFilter, AuditId, DailyCount, make_audit_entry
from mlapi.domain.commands import (
    AddApiKey,
    ApiKeyCommand,
    Command,
    LinkCommand,
    Outcome,
    RecordApiKeyUse,
    Register,
    Remove,
    UpdateUser,
    UserChange,
    UserCommand,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId, ApiKeyPrincipal, Principal, PrincipalId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    RepositoryUnavailableError,
    TooManyApiKeysError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.links import AddLink, Link, LinkId, Redemption
from mlapi.domain.lists import ListedUser, ListPosition, StateCounts
from mlapi.domain.outbox import QueuedMail, make_queued_mails
from mlapi.domain.rules import EVERY_USER, UserFilter, canonical_username, fold
from mlapi.domain.users import User, UserId, UsernameKey, UserOrder
from mlapi.forks import new_lock


class InMemoryAuditTrail:
    """An `AuditTrail` in memory."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._entries: dict[AuditId, AuditEntry] = {}  # without their ids: adding them to all would double the time
        self._last_id = 0

    def write(self, entry: AuditEntry) -> None:
        with self._lock:
            self._last_id += 1
            self._entries[AuditId(self._last_id)] = entry

    def list_page(
        self,
        *,
        after: AuditId | None = None,
        newer_than: AuditId | None = None,
        limit: int,
        matching: AuditFilter = EVERY_ENTRY,
    ) -> list[AuditEntry]:
        with self._lock:
            found = [
                (entry_id, entry)
                for entry_id, entry in reversed(self._entries.items())
                if (after is None or entry_id < after)
                and (newer_than is None or entry_id > newer_than)
                and matching.matches(entry)
            ]
        return _with_ids(found[:limit] if newer_than is None else found[-limit:])

    def count_bulk(self, bulk_ids: Sequence[str], *, limit: int) -> list[int]:
        with self._lock:
            counts = Counter(entry.bulk_id for entry in self._entries.values())
        return [min(counts[bulk_id], limit) for bulk_id in bulk_ids]

    def find_removals(self, user_ids: Sequence[UserId]) -> list[AuditEntry]:
        with self._lock:
            return _with_ids(
                (entry_id, entry)
                for entry_id, entry in self._entries.items()
                if entry.action == "remove" and entry.outcome == "done" and entry.user_id in user_ids
            )

    def count_per_day(self, *, since: datetime) -> list[DailyCount]:
        with self._lock:
            counts = Counter(
                (entry.at.astimezone(UTC).date(), entry.action)
                for entry in self._entries.values()
                if entry.at >= since and entry.outcome == "done"
            )
        return [DailyCount(day, action, count) for (day, action), count in sorted(counts.items())]

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._lock:
            old = sorted((entry.at, entry_id) for entry_id, entry in self._entries.items() if entry.at < before)[:limit]
            for _, entry_id in old:
                del self._entries[entry_id]
            return len(old)


def _with_ids(entries: Iterable[tuple[AuditId, AuditEntry]]) -> list[AuditEntry]:
    return [attrs.evolve(entry, id=entry_id) for entry_id, entry in entries]


class InMemoryLinks:
    """A `LinkRepository` in memory."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._links: dict[LinkId, Link] = {}

    def add(self, link: Link) -> None:
        with self._lock:
            self._links[link.id] = link

    def find(self, link_id: LinkId) -> Link | None:
        return self._links.get(link_id)

    def remove_of_user(self, user_id: UserId) -> None:
        with self._lock:
            for link in [link for link in self._links.values() if link.user_id == user_id]:
                del self._links[link.id]

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._lock:
            old = [link.id for link in self._links.values() if link.expires_datetime < before][:limit]
            for link_id in old:
                del self._links[link_id]
            return len(old)


class InMemoryUserRepository:
    """A thread-safe `UserRepository` in memory.

    Args:
        usage: the activity of the users, for lists.
    """

    def __init__(self, usage: InMemoryUsage | None = None) -> None:
        self._usage = InMemoryUsage() if usage is None else usage
        self._lock = new_lock()
        self._users: dict[UserId, User] = {}
        self._ids: dict[UsernameKey, UserId] = {}
        self._api_keys: dict[ApiKeyId, ApiKey] = {}
        self._last_id = 0
        self.audit = InMemoryAuditTrail()
        self.outbox = InMemoryOutbox()
        self.links = InMemoryLinks()
        self._appliers: dict[type, Callable[[Any], Outcome]] = {
            UpdateUser: self._update,
            **dict.fromkeys(get_args(LinkCommand), self._apply_to_links),
            **dict.fromkeys(get_args(ApiKeyCommand), self._apply_to_api_keys),
        }

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        with self._lock:
            if commit_by is not None and time.monotonic() > commit_by:
                raise RepositoryUnavailableError("too late to commit")
            outcomes = [self._apply(command) for command in commands]
            self._queue_mails(make_queued_mails(commands, outcomes))
            return outcomes

    def get(self, user_id: UserId) -> User:
        with self._lock:
            try:
                return self._users[user_id]
            except KeyError:
                raise UserNotFoundError(user_id) from None

    def has(self, user_id: UserId) -> bool:
        """Return whether a user with this id exists."""
        return user_id in self._users

    def find(self, key: UsernameKey) -> User | None:
        with self._lock:
            user_id = self._ids.get(key)
            return None if user_id is None else self._users[user_id]

    def find_many(self, keys: Sequence[UsernameKey]) -> list[User | None]:
        return [self.find(key) for key in keys]

    def list_page(self, *, after: UserId, limit: int, matching: UserFilter = EVERY_USER) -> list[User]:
        return self._select(matching, after=after)[:limit]

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
        found = self._usage.list_activity(self._select(matching), matching.state_time)
        by_position = [(ListPosition.of(order, listed), listed) for listed in found]

        def compare(first: tuple[ListPosition, object], second: tuple[ListPosition, object]) -> int:
            return 1 if first[0].is_after(second[0], descending=descending) else -1

        page = [
            listed
            for position, listed in sorted(by_position, key=cmp_to_key(compare))
            if (after is None or position.is_after(after, descending=descending))
            and (before is None or before.is_after(position, descending=descending))
        ]
        return page[:limit] if before is None else page[-limit:]

    def _select(self, matching: UserFilter, *, after: int = 0) -> list[User]:
        with self._lock:  # already sorted by id: ids only increase, and a dict keeps its insertion order
            return [user for user in self._users.values() if user.id > after and matching.matches(user)]

    def find_by_prefix(self, prefix: str, *, limit: int) -> list[User]:
        with self._lock:
            return [user for user in self._users.values() if fold(user.username).startswith(prefix)][:limit]

    def find_by_email(self, email: str, *, limit: int) -> list[User]:
        return self._select(UserFilter(email=email))[:limit]

    def count(self, matching: UserFilter = EVERY_USER, *, limit: int | None = None) -> int:
        count = len(self._select(matching))
        return count if limit is None else min(count, limit)

    def count_states(self, at: datetime) -> StateCounts:
        with self._lock:
            counts = Counter(user.state_at(at) for user in self._users.values())
        return StateCounts(**{str(state): count for state, count in counts.items()})

    def count_registrations(self, *, since: datetime) -> dict[date, int]:
        with self._lock:
            return Counter(
                user.created_datetime.date() for user in self._users.values() if user.created_datetime >= since
            )

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

    def _queue_mails(self, mails: Sequence[QueuedMail]) -> None:
        self.outbox.add(mails)

    def _apply(self, command: Command) -> Outcome:
        outcome = self._appliers.get(type(command), self._apply_to_users)(command)
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
            self.links.remove_of_user(stored.id)
            return self._users.pop(stored.id)
        changed = command.apply_to(stored)
        if isinstance(changed, User):
            self._users[stored.id] = changed
        return changed

    def _update(self, command: UpdateUser) -> Outcome:
        if (stored := self._users.get(command.user_id)) is None:
            return UserNotFoundError(command.user_id)
        change = command.apply_to(stored)
        if command.username_key is not None and isinstance(change, UserChange):
            if (holder := self._ids.get(command.username_key, stored.id)) != stored.id:
                return UserExistsError(holder)
            del self._ids[canonical_username(stored.username)]
            self._ids[command.username_key] = stored.id
        if isinstance(change, UserChange):
            self._users[stored.id] = change.after
            if change.before.email != change.after.email:
                self.links.remove_of_user(stored.id)
        return change

    def _add_api_key(self, command: AddApiKey) -> Outcome:
        user_id, limit = command.user_id, command.limit
        if user_id not in self._users:
            return UserNotFoundError(user_id)
        if limit is not None and sum(key.user_id == user_id for key in self._api_keys.values()) >= limit:
            return TooManyApiKeysError(user_id, limit)
        self._api_keys[command.key.id] = command.key
        return command.key

    def _apply_to_links(self, command: LinkCommand) -> Outcome:
        stored = self._users.get(command.user_id)
        if isinstance(command, AddLink):
            outcome = UserNotFoundError(command.user_id) if stored is None else command.apply_to(stored)
            if isinstance(outcome, Link):
                self.links.add(outcome)
            return outcome
        redeemed = command.apply_to(self.links.find(command.link_id), stored)
        if isinstance(redeemed, Redemption):
            self.links.remove_of_user(command.user_id)
            self._users[command.user_id] = redeemed.after
        return redeemed

    def _apply_to_api_keys(self, command: ApiKeyCommand) -> Outcome:
        if isinstance(command, AddApiKey):
            return self._add_api_key(command)
        if (key := self._api_keys.get(command.key_id)) is None:
            return ApiKeyNotFoundError(command.key_id)
        if isinstance(command, RecordApiKeyUse):
            self._api_keys[key.id] = command.apply_to(key)
            return self._api_keys[key.id]
        if command.owner not in {None, key.user_id}:
            return ApiKeyNotFoundError(command.key_id)
        return self._api_keys.pop(key.id)
