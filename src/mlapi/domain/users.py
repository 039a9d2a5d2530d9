"""The user entity and its identifiers."""

from datetime import UTC, datetime
from typing import Literal, NewType

import attrs

UserId = NewType("UserId", int)
UsernameKey = NewType("UsernameKey", str)
"""A username in canonical form, which is unique. Only `mlapi.domain.rules.canonical_username` creates one."""

UserOrder = Literal["id", "name", "created", "updated"]
"""The sort order of a list of users. Users with equal values are sorted by id."""

MAX_USER_ID = 2**63 - 1
"""The largest signed 64-bit integer. Larger ids are valid, but no user has one."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def to_utc(instant: datetime) -> datetime:
    """Return the same instant in UTC.

    Raises:
        ValueError: if the time has no time zone.
    """
    if instant.tzinfo is UTC:
        return instant
    if instant.tzinfo is None:
        raise ValueError("the time has no time zone: use an aware datetime")
    return instant.astimezone(UTC)


@attrs.frozen
class EncryptedPassword:
    """A stored password, encrypted by a `PasswordCipher`."""

    value: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class User:
    """A stored user. All times are in UTC.

    Every token contains the ``token_epoch`` that its user had when it was issued. The epoch is random; replacing it
    revokes all tokens of the user.
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
        """Always True: only authenticated requests have a `User`. Django and Starlette expect this attribute name."""
        return True

    @property
    def display_name(self) -> str:
        """The username, under the attribute name that Starlette expects."""
        return self.username

    @property
    def identity(self) -> str:
        """The id as text, under the attribute name that Starlette expects."""
        return str(self.id)
