"""Commands: values that completely describe a change to the users.

A command contains its time, its random values and the actor who requested it. The same commands in the same order
therefore give the same result in every repository, in one batch or in many.
"""

from datetime import datetime
from enum import Enum
from typing import Any

import attrs

from mlapi.domain.actors import UNKNOWN_ACTOR, Actor
from mlapi.domain.credentials import USE_RECORDING_INTERVAL, ApiKey, ApiKeyId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ChangeRejectedError,
    InvalidFieldsError,
    LinkNotAllowedError,
    LinkNotFoundError,
    PasswordChangedError,
    TooManyApiKeysError,
    UserChangedError,
    UserExistsError,
    UserNotFoundError,
    UserReferencedError,
)
from mlapi.domain.expiry import Extension
from mlapi.domain.links import AddLink, Link, RedeemLink, Redemption
from mlapi.domain.mail import MailKind
from mlapi.domain.metadata import NO_METADATA, Metadata
from mlapi.domain.rules import canonical_username, find_email_error
from mlapi.domain.users import (
    EncryptedPassword,
    Pending,
    User,
    UserId,
    UsernameKey,
    generate_token_epoch,
    to_utc,
    utc_now,
)


@attrs.frozen(kw_only=True)
class Register:
    """Register a new user.

    ``created`` is the original registration time of an imported user; None means ``at``. ``pending`` is what the new
    user waits for; ``enabled`` is then False. ``mail`` is the mail that is sent to the user.

    Raises:
        InvalidFieldsError: if the username or the e-mail address violates a rule. Reports only the first invalid field;
            `mlapi.application.users.Users` reports all of them.
    """

    username: str
    password: EncryptedPassword
    email: str = attrs.field(repr=False)
    enabled: bool = True
    at: datetime = attrs.field(converter=to_utc)
    created: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))
    expires_datetime: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))
    plan: str | None = None
    metadata: Metadata = attrs.field(default=NO_METADATA, repr=False)
    pending: Pending | None = None
    mail: MailKind | None = None
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR
    username_key: UsernameKey = attrs.field(init=False, repr=False)

    @username_key.default
    def _canonical(self) -> UsernameKey:
        return canonical_username(self.username)

    @email.validator
    def _validate_email(self, _attribute: object, email: str) -> None:
        InvalidFieldsError.raise_for([("email", find_email_error(email))])

    @property
    def created_datetime(self) -> datetime:
        return self.created or self.at

    @property
    def updated_datetime(self) -> datetime:
        return self.at

    def as_user(self, user_id: UserId) -> User:
        return User(
            id=user_id,
            username=self.username,
            password=self.password,
            email=self.email,
            enabled=self.enabled,
            created_datetime=self.created_datetime,
            updated_datetime=self.updated_datetime,
            token_epoch=self.token_epoch,
            expires_datetime=self.expires_datetime,
            plan=self.plan,
            metadata=self.metadata,
            pending=self.pending,
        )


@attrs.frozen(kw_only=True)
class RejectRegistration:
    """Record in the audit trail that a registration was rejected because this user has the username.

    Changes nothing. If the user still exists, the outcome is `UserExistsError`.
    """

    user_id: UserId
    at: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> UserExistsError:
        return UserExistsError(user.id)


@attrs.frozen(kw_only=True)
class IssueToken:
    """Record in the audit trail that an operator got a token for this user. Changes nothing."""

    user_id: UserId
    at: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> User:
        return user


@attrs.frozen(kw_only=True)
class SetEnabled:
    """Enable or disable a user, who is then no longer pending. Always sets ``updated_datetime``.

    A new token epoch starts only if ``enabled`` changes: a nightly job that enables every paying user must not revoke
    the tokens of users who were enabled already.
    """

    user_id: UserId
    enabled: bool
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> User:
        epoch = user.token_epoch if user.enabled == self.enabled else self.token_epoch
        return attrs.evolve(user, enabled=self.enabled, pending=None, updated_datetime=self.at, token_epoch=epoch)


@attrs.frozen(kw_only=True)
class EndTokens:
    """Revoke all tokens of a user. API keys stay valid."""

    user_id: UserId
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> User:
        return attrs.evolve(user, updated_datetime=self.at, token_epoch=self.token_epoch)


@attrs.frozen(kw_only=True)
class ChangePassword:
    """Replace a user's password and revoke all tokens.

    ``replacing`` is the stored password that the user's current password was checked against. The command is rejected
    if the stored password has changed since: an admin may have replaced a stolen password, and the attacker must not
    be able to change it again. None skips this check.
    """

    user_id: UserId
    password: EncryptedPassword
    replacing: EncryptedPassword | None
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> "User | PasswordChangedError":
        if user.password == self.password:
            return user  # the same command has already been applied
        if self.replacing not in {None, user.password}:
            return PasswordChangedError(user.id)
        return attrs.evolve(user, password=self.password, updated_datetime=self.at, token_epoch=self.token_epoch)


@attrs.frozen(kw_only=True)
class Reencrypt:
    """Store the same password with a newer scheme or key. Changes nothing else about the user.

    Does nothing if the stored password is no longer ``replacing``. This is not an error: if the new password needs an
    upgrade, the next login upgrades it.
    """

    user_id: UserId
    password: EncryptedPassword
    replacing: EncryptedPassword

    def apply_to(self, user: User) -> User:
        return attrs.evolve(user, password=self.password) if user.password == self.replacing else user


class Unchanged(Enum):
    """The type of `UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED
"""The value of each field that an `UpdateUser` does not change. None removes an expiry or a plan."""


@attrs.frozen
class UserChange:
    """A user before and after an `UpdateUser`."""

    before: User
    after: User


def _to_expiry(expires: datetime | Extension | Unchanged | None) -> datetime | Extension | Unchanged | None:
    return to_utc(expires) if isinstance(expires, datetime) else expires


def _to_stored_expiry(expires: datetime | Unchanged | None) -> datetime | Unchanged | None:
    return to_utc(expires) if isinstance(expires, datetime) else expires


@attrs.frozen(kw_only=True)
class UpdateUser:
    """Change a user's name, e-mail address, expiry, plan or metadata. Tokens and API keys stay valid.

    A new e-mail address removes all one-time links of the user.

    ``expires`` is a time, None, or an `Extension` of the current expiry. ``metadata`` replaces all keys.

    Each ``replacing_`` field that is set is the stored value that the change is based on. For example, a page extends
    access only from the expiry that it shows, so that a form sent twice extends it once.

    Rejected with `UserExistsError` if another user has the new name, and with `UserChangedError` if a stored value is
    no longer the one that the change is based on.

    Raises:
        InvalidFieldsError: if the username or the e-mail address violates a rule. Reports only the first invalid field.
    """

    user_id: UserId
    username: str | Unchanged = UNCHANGED
    email: str | Unchanged = attrs.field(default=UNCHANGED, repr=False)
    expires: datetime | Extension | Unchanged | None = attrs.field(default=UNCHANGED, converter=_to_expiry)
    plan: str | Unchanged | None = UNCHANGED
    metadata: Metadata | Unchanged = attrs.field(default=UNCHANGED, repr=False)
    replacing_expires: datetime | Unchanged | None = attrs.field(default=UNCHANGED, converter=_to_stored_expiry)
    replacing_metadata: Metadata | Unchanged = attrs.field(default=UNCHANGED, repr=False)
    replacing_username: str | Unchanged = UNCHANGED
    replacing_email: str | Unchanged = attrs.field(default=UNCHANGED, repr=False)
    replacing_plan: str | Unchanged | None = UNCHANGED
    at: datetime = attrs.field(converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR
    username_key: UsernameKey | None = attrs.field(init=False, repr=False)

    @username_key.default
    def _canonical(self) -> UsernameKey | None:
        return None if isinstance(self.username, Unchanged) else canonical_username(self.username)

    @email.validator
    def _validate_email(self, _attribute: object, email: str | Unchanged) -> None:
        if not isinstance(email, Unchanged):
            InvalidFieldsError.raise_for([("email", find_email_error(email))])

    def apply_to(self, user: User) -> UserChange | UserChangedError:
        if not (
            self.replacing_expires in {UNCHANGED, user.expires_datetime}
            and self.replacing_metadata in {UNCHANGED, user.metadata}
            and self.replacing_username in {UNCHANGED, user.username}
            and self.replacing_email in {UNCHANGED, user.email}
            and self.replacing_plan in {UNCHANGED, user.plan}
        ):
            return UserChangedError(user.id)
        expires = self.expires
        if isinstance(expires, Extension):
            expires = expires.extend(user.expires_datetime, self.at)
        new_values: dict[str, Any] = {
            "username": self.username,
            "email": self.email,
            "expires_datetime": expires,
            "plan": self.plan,
            "metadata": self.metadata,
        }
        changed = {name: value for name, value in new_values.items() if value is not UNCHANGED}
        return UserChange(user, attrs.evolve(user, updated_datetime=self.at, **changed))


@attrs.frozen(kw_only=True)
class Remove:
    """Remove a user, and the user's API keys and one-time links. The id is never used again.

    ``keeps_name`` is whether the audit trail keeps the user's name.
    """

    user_id: UserId
    keeps_name: bool = True
    at: datetime = attrs.field(factory=utc_now, converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR


@attrs.frozen(kw_only=True)
class AddApiKey:
    """Add an API key to a user.

    ``limit`` is the maximum number of API keys of the user, including this one and expired ones. Beyond it, the outcome
    is a `TooManyApiKeysError`. None means no limit.
    """

    key: ApiKey
    limit: int | None = None
    actor: Actor = UNKNOWN_ACTOR

    @property
    def user_id(self) -> UserId:
        return self.key.user_id


@attrs.frozen(kw_only=True)
class RemoveApiKey:
    """Remove an API key.

    If ``owner`` is not None, the API keys of all other users are treated as unknown.
    """

    key_id: ApiKeyId
    owner: UserId | None = None
    at: datetime = attrs.field(factory=utc_now, converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR


@attrs.frozen(kw_only=True)
class RecordApiKeyUse:
    """Record when an API key was last used.

    Does nothing if a use was recorded less than `USE_RECORDING_INTERVAL` earlier.
    """

    key_id: ApiKeyId
    at: datetime = attrs.field(converter=to_utc)

    @property
    def recent_since(self) -> datetime:
        """A recorded use after this time is recent enough to be kept."""
        return self.at - USE_RECORDING_INTERVAL

    def apply_to(self, key: ApiKey) -> ApiKey:
        if key.last_used_datetime is not None and key.last_used_datetime > self.recent_since:
            return key
        return attrs.evolve(key, last_used_datetime=self.at)


UserUpdate = SetEnabled | EndTokens | ChangePassword | Reencrypt | RejectRegistration | IssueToken
"""Commands for an existing user; ``apply_to`` returns the modified user, or the error that rejects the command."""
UserCommand = Register | UserUpdate | Remove
ApiKeyCommand = AddApiKey | RemoveApiKey | RecordApiKeyUse
LinkCommand = AddLink | RedeemLink
Command = UserCommand | UpdateUser | ApiKeyCommand | LinkCommand
Rejection = (
    UserExistsError
    | UserNotFoundError
    | PasswordChangedError
    | UserChangedError
    | ApiKeyNotFoundError
    | TooManyApiKeysError
    | LinkNotFoundError
    | LinkNotAllowedError
    | UserReferencedError
    | ChangeRejectedError
)
Result = User | UserChange | ApiKey | Link | Redemption
"""The resulting user, API key or link (its last state, if it was removed).

The result of `UpdateUser` is a `UserChange`, and that of `RedeemLink` a `Redemption`."""
Outcome = Result | Rejection
"""The result of a command, or the error that rejects it."""
