"""Every change to the users is a value: it says all that it will do, so applying it decides nothing by chance.

A change carries its time and its random part. The same changes in the same order leave the same users in every
repository, one by one or in one batch.
"""

import random
from datetime import datetime

import attrs

from mlapi.domain.errors import InvalidFieldsError, UserExistsError, UserNotFoundError
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
class Remove:
    """Remove a user for good. The id is never given to anybody else."""

    user_id: UserId


Change = Register | SetEnabled | Remove
Refusal = UserExistsError | UserNotFoundError
Outcome = User | Refusal
"""The user as the change left it (for `Remove`: as it was), or the error that refuses this change alone."""
