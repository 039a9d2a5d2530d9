"""Logins: the time and address of each successful login with a password."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

import attrs

from mlapi.domain.rules import shorten_description
from mlapi.domain.users import UserId, to_utc


@attrs.frozen
class Login:
    """A successful login.

    ``address`` is the address of the client; see `mlapi.domain.rules.shorten_description`. Empty if it is unknown.
    """

    user_id: UserId
    at: datetime = attrs.field(converter=to_utc)
    address: str = attrs.field(converter=shorten_description)


class Logins(Protocol):
    """Stores the logins of each user.

    Every method raises `RepositoryUnavailableError` while the database is unavailable. Callers may pass ids of any
    size: no user has an id that the database cannot store.
    """

    def add(self, logins: Sequence[Login]) -> None:
        """Store logins durably, in any order.

        Logins of unknown users are ignored. So are logins with the user and time of a stored one, so that callers may
        retry. Removing a user also removes their logins.
        """
        ...

    def list_recent(self, user_id: UserId, *, limit: int) -> list[Login]:
        """Return the latest logins of a user, the newest first. Empty if the user does not exist."""
        ...

    def purge(self, *, before: datetime, limit: int) -> int:
        """Delete at most ``limit`` logins from before a time, the oldest first. Return how many were deleted."""
        ...


class LoginRecorder(Protocol):
    """Records logins without waiting for the database."""

    def record(self, user_id: UserId, at: datetime, address: str) -> None:
        """Record a login. Never waits or fails."""
        ...
