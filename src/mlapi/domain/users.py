"""The user entity and its identifiers."""

import secrets
from datetime import UTC, datetime
from typing import Literal, NewType

import attrs

from mlapi.domain.metadata import NO_METADATA, Metadata, or_no_metadata

UserId = NewType("UserId", int)
UsernameKey = NewType("UsernameKey", str)
"""A username in canonical form, which is unique. Only `mlapi.domain.rules.canonical_username` creates one."""

UserOrder = Literal["id", "name", "created", "updated", "expires", "seen", "usage"]
"""The sort order of a list of users. Users with equal values are sorted by id.

``seen`` is the time of the latest request, and ``usage`` the number of requests in this month, in UTC."""

UserState = Literal["active", "disabled", "expired", "pending"]
"""Whether a user has access. Users who are not enabled are "pending" or "disabled", even if their access has
expired."""

Pending = Literal["email", "approval", "email_then_approval"]
"""What a pending user waits for: their e-mail address to be verified, the approval of a manager, or both in turn."""

MAX_USER_ID = 2**63 - 1
"""The largest signed 64-bit integer. Larger ids are valid, but no user has one."""

_TOKEN_EPOCH_BYTES = 8


def generate_token_epoch() -> str:
    """Return 64 random bits in hex, so that a stolen signing key alone is not enough to forge a token."""
    return secrets.token_hex(_TOKEN_EPOCH_BYTES)


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


NO_PASSWORD = EncryptedPassword("")
"""The stored password of users who have none yet, and cannot log in. They set it with a one-time link."""


@attrs.frozen(kw_only=True)
class User:
    """A stored user. All times are in UTC.

    Access expires at ``expires_datetime``; None means that it never expires. ``plan`` is the name of a plan in the
    configuration; None means the default plan. Only admins can see ``metadata``.

    A user who is not enabled may be ``pending``: new, and never enabled before. ``pending`` says what they wait for.
    It is always None for enabled users.

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
    expires_datetime: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))
    plan: str | None = None
    metadata: Metadata = attrs.field(default=NO_METADATA, repr=False, converter=or_no_metadata)
    pending: Pending | None = None

    def state_at(self, at: datetime) -> UserState:
        """Return whether the user has access at this time. Access has expired from ``expires_datetime`` on."""
        if not self.enabled:
            return "disabled" if self.pending is None else "pending"
        has_expired = self.expires_datetime is not None and self.expires_datetime <= at
        return "expired" if has_expired else "active"

    @property
    def has_password(self) -> bool:
        """False for an invited user who has not set a password yet."""
        return self.password != NO_PASSWORD

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
