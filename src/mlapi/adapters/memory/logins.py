"""Logins in memory."""

from collections.abc import Callable, Sequence
from datetime import datetime

from mlapi.domain.logins import Login
from mlapi.domain.users import UserId
from mlapi.forks import new_lock


class InMemoryLogins:
    """`Logins` for one process.

    Args:
        has_user: returns whether a user exists.
    """

    def __init__(self, has_user: Callable[[UserId], bool]) -> None:
        self._has_user = has_user
        self._lock = new_lock()
        self._logins: dict[tuple[UserId, datetime], Login] = {}

    def add(self, logins: Sequence[Login]) -> None:
        with self._lock:
            for login in logins:
                if self._has_user(login.user_id):
                    self._logins.setdefault((login.user_id, login.at), login)

    def list_recent(self, user_id: UserId, *, limit: int) -> list[Login]:
        with self._lock:
            self._forget_removed()
            found = [login for login in self._logins.values() if login.user_id == user_id]
        return sorted(found, key=lambda login: login.at, reverse=True)[:limit]

    def purge(self, *, before: datetime, limit: int) -> int:
        with self._lock:
            self._forget_removed()
            old = sorted((login.at, login.user_id) for login in self._logins.values() if login.at < before)[:limit]
            for at, user_id in old:
                del self._logins[user_id, at]
            return len(old)

    def _forget_removed(self) -> None:
        self._logins = {key: login for key, login in self._logins.items() if self._has_user(login.user_id)}
