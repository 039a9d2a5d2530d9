"""What the core asks of the world. The docstrings are the contracts; ``tests/contract`` holds every adapter to them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from mlapi.domain.changes import Change, Outcome
from mlapi.domain.model import EncryptedPassword, User, UserId, UsernameKey


class UserRepository(Protocol):
    """Where the users are kept. Every method raises `RepositoryUnavailableError` while they cannot be reached."""

    def apply(self, changes: Sequence[Change], *, commit_by: float | None = None) -> list[Outcome]:
        """Apply the changes in order, all in one durable transaction, and return an outcome for each.

        A refused change leaves its neighbours alone. When this returns, all of it survives a crash; when it raises,
        none of it was applied (but for a connection lost while the database was committing, which leaves that open).

        Args:
            changes: in their order.
            commit_by: a time of `time.monotonic`. What could only be committed later is undone, and raises: whoever
                asked has been told that it was not done, and may have asked for something else since.
        """
        ...

    def get(self, user_id: UserId) -> User:
        """Return the user.

        Raises:
            UserNotFoundError: if no user has this id.
        """
        ...

    def find(self, key: UsernameKey) -> User | None:
        """Return the user whose canonical username is ``key``, or None."""
        ...

    def page(self, *, after: UserId, limit: int) -> list[User]:
        """Return at most ``limit`` users with an id above ``after``, by rising id (a keyset page; begin with 0)."""
        ...

    def check(self) -> None:
        """Return if a transaction that writes can begin now; raise `RepositoryUnavailableError` if not."""
        ...


class PasswordCipher(Protocol):
    """Makes stored passwords and compares with them. Has no ``decrypt``: nobody needs one."""

    @property
    def is_costly(self) -> bool:
        """Whether `encrypt` and `matches` take milliseconds: such work belongs into threads of its own."""
        ...

    def encrypt(self, password: str) -> EncryptedPassword:
        """Return what to store. Equal passwords give different values."""
        ...

    def matches(self, password: str, encrypted: EncryptedPassword) -> bool:
        """Whether ``encrypted`` was made of ``password``, at the same cost for yes and no.

        A value that cannot be read (wrong key, damage) matches nothing; it is logged, and nothing is raised.
        """
        ...

    def needs_upgrade(self, encrypted: EncryptedPassword) -> bool:
        """Whether `encrypt` would now make a better value: a newer scheme, key or cost."""
        ...


class Clock(Protocol):
    def __call__(self) -> datetime:
        """Return the time now, aware."""
        ...
