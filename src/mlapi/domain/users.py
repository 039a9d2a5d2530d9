"""The user, and the rules that a new user's fields must meet.

The rules bind whoever registers, not rows that are already stored: a database older than a rule stays readable.
"""

from datetime import UTC, datetime
from typing import NewType

import attrs

UserId = NewType("UserId", int)
UsernameKey = NewType("UsernameKey", str)
"""A username in its canonical form, made by `canonical_username` alone. Unique: one person, one key."""

USER_ID_MAX = 2**63 - 1
"""What a signed 64-bit integer holds. A greater id is an id too, that nobody can have."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def to_utc(instant: datetime) -> datetime:
    """Return the same instant in UTC. Raises ValueError for a time without its zone."""
    if instant.tzinfo is UTC:
        return instant
    if instant.tzinfo is None:
        raise ValueError("a time without its zone: give an aware datetime")
    return instant.astimezone(UTC)


@attrs.frozen
class EncryptedPassword:
    """What a `PasswordCipher` has made of a password, as it is stored."""

    value: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class User:
    """One user as stored. Times are aware and in UTC.

    ``token_epoch`` is a random value that every token of this user carries; whoever changes it ends them all.
    """

    id: UserId
    username: str
    password: EncryptedPassword = attrs.field(repr=False)
    email: str = attrs.field(repr=False)
    enabled: bool
    created_datetime: datetime = attrs.field(converter=to_utc)
    updated_datetime: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(repr=False)

    @property
    def is_authenticated(self) -> bool:
        """True, as in a request a `User` is who was let in. Django, Starlette and Flask-Login ask by this name."""
        return True

    @property
    def display_name(self) -> str:
        """Starlette's name for the username."""
        return self.username

    @property
    def identity(self) -> str:
        """Starlette's name for the id, as text."""
        return str(self.id)
