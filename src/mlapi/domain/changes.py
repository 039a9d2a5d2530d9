"""Every change to the users is a value: it says all that it will do, so applying it decides nothing by chance.

A change carries its time and its random part. The same changes in the same order leave the same users in every
repository, one by one or in one batch.
"""

import random
from datetime import datetime

import attrs

from mlapi.domain.credentials import USE_RECORDED_EVERY, ApiKey, ApiKeyId
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    InvalidFieldsError,
    PasswordChangedError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.model import (
    EncryptedPassword,
    User,
    UserId,
    UsernameKey,
    canonical_username,
    email_problem,
    to_utc,
)


def new_token_epoch() -> str:
    """64 random bits as hex. Two epochs of one user must differ; to guess one is of no use, as tokens are signed."""
    return f"{random.getrandbits(64):016x}"  # which seeds itself anew in a forked process


@attrs.frozen(kw_only=True)
class Register:
    """A new user, enabled.

    Raises:
        InvalidFieldsError: for the first of username and email that breaks a rule of `mlapi.domain.model`.
            `mlapi.service.Users` names them all.
    """

    username: str
    password: EncryptedPassword
    email: str = attrs.field(repr=False)
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=new_token_epoch, repr=False)
    username_key: UsernameKey = attrs.field(init=False, repr=False)

    @username_key.default
    def _canonical(self) -> UsernameKey:
        return canonical_username(self.username)

    @email.validator
    def _check_form(self, _attribute: object, email: str) -> None:
        InvalidFieldsError.raise_for([("email", email_problem(email))])

    def as_user(self, user_id: UserId) -> User:
        return User(
            id=user_id,
            username=self.username,
            password=self.password,
            email=self.email,
            enabled=True,
            created_datetime=self.at,
            updated_datetime=self.at,
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
    token_epoch: str = attrs.field(factory=new_token_epoch, repr=False)

    def applied_to(self, user: User) -> User:
        epoch = user.token_epoch if user.enabled == self.enabled else self.token_epoch
        return attrs.evolve(user, enabled=self.enabled, updated_datetime=self.at, token_epoch=epoch)


@attrs.frozen(kw_only=True)
class EndTokens:
    """End every token that a user has been given so far. His API keys stay."""

    user_id: UserId
    at: datetime = attrs.field(converter=to_utc)
    token_epoch: str = attrs.field(factory=new_token_epoch, repr=False)

    def applied_to(self, user: User) -> User:
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
    token_epoch: str = attrs.field(factory=new_token_epoch, repr=False)

    def applied_to(self, user: User) -> "User | PasswordChangedError":
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

    def applied_to(self, user: User) -> User:
        return attrs.evolve(user, password=self.password) if user.password == self.replacing else user


@attrs.frozen(kw_only=True)
class Remove:
    """Remove a user for good, with his API keys. The id is never given to anybody else."""

    user_id: UserId


@attrs.frozen(kw_only=True)
class AddApiKey:
    """A new API key of a user."""

    key: ApiKey

    @property
    def user_id(self) -> UserId:
        return self.key.user_id


@attrs.frozen(kw_only=True)
class RemoveApiKey:
    key_id: ApiKeyId


@attrs.frozen(kw_only=True)
class RecordApiKeyUse:
    """When a key was used last; does nothing within `USE_RECORDED_EVERY` after the last record."""

    key_id: ApiKeyId
    at: datetime = attrs.field(converter=to_utc)

    @property
    def unless_since(self) -> datetime:
        """A use that was recorded after this is recent enough."""
        return self.at - USE_RECORDED_EVERY

    def applied_to(self, key: ApiKey) -> ApiKey:
        if key.last_used_datetime is not None and key.last_used_datetime > self.unless_since:
            return key
        return attrs.evolve(key, last_used_datetime=self.at)


UserUpdate = SetEnabled | EndTokens | ChangePassword | Reencrypt
"""What changes a user who is there; ``applied_to`` says into what."""
UserChange = Register | UserUpdate | Remove
ApiKeyChange = AddApiKey | RemoveApiKey | RecordApiKeyUse
Change = UserChange | ApiKeyChange
Refusal = UserExistsError | UserNotFoundError | PasswordChangedError | ApiKeyNotFoundError
Outcome = User | ApiKey | Refusal
"""The user or the key as the change left it (for removals: as it was), or the error that refuses this change alone."""
