"""Every change to the users is a value: it says all that it will do, so applying it decides nothing by chance.

A change carries its time and its random part. The same changes in the same order leave the same users in every
repository, one by one or in one batch. And it says by whom it is asked for, which the audit trail keeps.
"""

import secrets
from datetime import datetime

import attrs

from mlapi.domain.credentials import USE_RECORDING_INTERVAL, ApiKey, ApiKeyId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    InvalidFieldsError,
    PasswordChangedError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.rules import canonical_username, find_email_error, find_text_error, has_invisible
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey, to_utc, utc_now

ACTOR_MAX_CHARS = 200
"""Characters of `Actor.name` and `Actor.request_id`."""


def generate_token_epoch() -> str:
    """64 random bits as hex, which nobody guesses: a stolen key alone signs no token that lets anybody in."""
    return secrets.token_hex(8)


@attrs.frozen
class Actor:
    """Who asks for a change, and in which request.

    ``name`` is a role, an id or the name of a program, never a user's name or address: the audit trail outlives him.

    Raises:
        ValueError: if one of them is empty, longer than `ACTOR_MAX_CHARS`, or holds control or invisible characters.
    """

    name: str = attrs.field(default="library")
    request_id: str | None = None

    @name.validator
    def _check(self, _attribute: object, name: str) -> None:
        for text in (name,) if self.request_id is None else (name, self.request_id):
            if find_text_error(text, ACTOR_MAX_CHARS) is not None or has_invisible(text):
                raise ValueError(
                    f"an actor and a request id are 1 to {ACTOR_MAX_CHARS} characters, none of them hidden"
                )

    @classmethod
    def from_user_id(cls, user_id: UserId, request_id: str | None = None) -> "Actor":
        """Return a user himself as the one who asks."""
        return cls(f"user {user_id}", request_id)


UNKNOWN_ACTOR = Actor()
"""Of changes that a program makes without saying more."""


@attrs.frozen(kw_only=True)
class Register:
    """A new user, let in unless ``enabled`` says otherwise.

    ``created`` is when he was registered elsewhere, for one who is taken over; None is ``at``.

    Raises:
        InvalidFieldsError: for the first of username and email that breaks a rule of `mlapi.domain.users`.
            `mlapi.application.users.Users` names them all.
    """

    username: str
    password: EncryptedPassword
    email: str = attrs.field(repr=False)
    enabled: bool = True
    at: datetime = attrs.field(converter=to_utc)
    created: datetime | None = attrs.field(default=None, converter=attrs.converters.optional(to_utc))
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR
    username_key: UsernameKey = attrs.field(init=False, repr=False)

    @username_key.default
    def _canonical(self) -> UsernameKey:
        return canonical_username(self.username)

    @email.validator
    def _check_form(self, _attribute: object, email: str) -> None:
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
        )


@attrs.frozen(kw_only=True)
class SetEnabled:
    """Let a user in, or shut him out. Setting what is set already moves ``updated_datetime`` and nothing else.

    The epoch turns over only when the flag does: a nightly job that enables everybody who has paid must not end the
    tokens of those who were enabled all along.
    """

    user_id: UserId
    enabled: bool
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> User:
        epoch = user.token_epoch if user.enabled == self.enabled else self.token_epoch
        return attrs.evolve(user, enabled=self.enabled, updated_datetime=self.at, token_epoch=epoch)


@attrs.frozen(kw_only=True)
class EndTokens:
    """End every token that a user has been given so far. His API keys stay."""

    user_id: UserId
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> User:
        return attrs.evolve(user, updated_datetime=self.at, token_epoch=self.token_epoch)


@attrs.frozen(kw_only=True)
class ChangePassword:
    """Another password, which ends every token.

    ``replacing`` is the stored password that whoever asks has proved to know: if it is not the user's any more, this is
    refused, as a manager may have set another one just because the old one is known to a thief. None asks nothing.
    """

    user_id: UserId
    password: EncryptedPassword
    replacing: EncryptedPassword | None
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=generate_token_epoch, repr=False)
    actor: Actor = UNKNOWN_ACTOR

    def apply_to(self, user: User) -> "User | PasswordChangedError":
        if user.password == self.password:
            return user  # this very change was applied before
        if self.replacing not in {None, user.password}:
            return PasswordChangedError(user.id)
        return attrs.evolve(user, password=self.password, updated_datetime=self.at, token_epoch=self.token_epoch)


@attrs.frozen(kw_only=True)
class Reencrypt:
    """The same password, stored better: a newer scheme or key. Nothing of the user is seen to change.

    Does nothing if the stored password is not ``replacing`` any more; that is no error, as there is no hurry.
    """

    user_id: UserId
    password: EncryptedPassword
    replacing: EncryptedPassword

    def apply_to(self, user: User) -> User:
        return attrs.evolve(user, password=self.password) if user.password == self.replacing else user


@attrs.frozen(kw_only=True)
class Remove:
    """Remove a user for good, with his API keys. The id is never given to anybody else."""

    user_id: UserId
    at: datetime = attrs.field(factory=utc_now, converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR


@attrs.frozen(kw_only=True)
class AddApiKey:
    """A new API key of a user."""

    key: ApiKey
    actor: Actor = UNKNOWN_ACTOR

    @property
    def user_id(self) -> UserId:
        return self.key.user_id


@attrs.frozen(kw_only=True)
class RemoveApiKey:
    key_id: ApiKeyId
    at: datetime = attrs.field(factory=utc_now, converter=to_utc)
    actor: Actor = UNKNOWN_ACTOR


@attrs.frozen(kw_only=True)
class RecordApiKeyUse:
    """When a key was used last; does nothing within `USE_RECORDING_INTERVAL` after the last record."""

    key_id: ApiKeyId
    at: datetime = attrs.field(converter=to_utc)

    @property
    def recent_since(self) -> datetime:
        """A use that was recorded after this is recent enough."""
        return self.at - USE_RECORDING_INTERVAL

    def apply_to(self, key: ApiKey) -> ApiKey:
        if key.last_used_datetime is not None and key.last_used_datetime > self.recent_since:
            return key
        return attrs.evolve(key, last_used_datetime=self.at)


UserUpdate = SetEnabled | EndTokens | ChangePassword | Reencrypt
"""What changes a user who is there; ``apply_to`` says into what."""
UserCommand = Register | UserUpdate | Remove
ApiKeyCommand = AddApiKey | RemoveApiKey | RecordApiKeyUse
Command = UserCommand | ApiKeyCommand
Rejection = UserExistsError | UserNotFoundError | PasswordChangedError | ApiKeyNotFoundError
Outcome = User | ApiKey | Rejection
"""The user or the key as the change left it (for removals: as it was), or the error that refuses this change alone."""
