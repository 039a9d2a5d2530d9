"""Users in memory, and a cipher that does not encipher: for tests, ours and our users'.

They pass the same contract suites as the real ones. All is forgotten with the object.
"""

import hmac
import secrets
import threading
import time
from collections.abc import Sequence

from mlapi.domain.changes import Change, Outcome, Register, SetEnabled
from mlapi.domain.errors import RepositoryUnavailableError, UserExistsError, UserNotFoundError
from mlapi.domain.model import EncryptedPassword, User, UserId, UsernameKey, canonical_username


class InMemoryUserRepository:
    """A `UserRepository` that only forgets. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[UserId, User] = {}
        self._ids: dict[UsernameKey, UserId] = {}
        self._last_id = 0

    def apply(self, changes: Sequence[Change], *, commit_by: float | None = None) -> list[Outcome]:
        with self._lock:
            if commit_by is not None and time.monotonic() > commit_by:
                raise RepositoryUnavailableError("too late to commit")
            return [self._apply(change) for change in changes]

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

    def page(self, *, after: UserId, limit: int) -> list[User]:
        with self._lock:  # ids are handed out in rising order, and a dict keeps the order of its insertions
            return [user for user_id, user in self._users.items() if user_id > after][:limit]

    def check(self) -> None:
        """Memory is always there."""

    def _apply(self, change: Change) -> Outcome:
        if isinstance(change, Register):
            if (holder := self._ids.get(change.username_key)) is not None:
                return UserExistsError(holder)
            self._last_id += 1
            user = change.as_user(UserId(self._last_id))
            self._ids[change.username_key] = user.id
            self._users[user.id] = user
            return user
        if (stored := self._users.get(change.user_id)) is None:
            return UserNotFoundError(change.user_id)
        if isinstance(change, SetEnabled):
            self._users[stored.id] = change.applied_to(stored)
            return self._users[stored.id]
        del self._ids[canonical_username(stored.username)]
        return self._users.pop(stored.id)


class PlainCipher:
    """A `PasswordCipher` that hides nothing and costs nothing. For tests."""

    is_costly = False

    def encrypt(self, password: str) -> EncryptedPassword:
        # A random part, as the contract wants it: a test that compares stored values must fail here too.
        return EncryptedPassword(f"plain:{secrets.token_hex(4)}:{password}")

    def matches(self, password: str, encrypted: EncryptedPassword) -> bool:
        scheme, _, salted = encrypted.value.partition(":")
        _, _, stored = salted.partition(":")
        return scheme == "plain" and hmac.compare_digest(_encoded(stored), _encoded(password))

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        return not encrypted.value.startswith("plain:")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a lone surrogate is no password, but asking is no error
