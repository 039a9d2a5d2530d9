"""Log-ins with a name and a password.

A log-in has steps, because an asynchronous caller runs them in different places: `Authenticator.begin` waits for the
database, `Authenticator.compare` takes processor time, `Authenticator.conclude` waits for the database again.
"""

from contextlib import suppress
from typing import final

import attrs

from mlapi.application.guard import Guard
from mlapi.application.users import Users
from mlapi.domain.commands import Actor, ChangePassword, Reencrypt
from mlapi.domain.credentials import (
    IssuedToken,
)
from mlapi.domain.errors import (
    InvalidCredentialsError,
    InvalidFieldsError,
    RepositoryUnavailableError,
    UserDisabledError,
    UserNotFoundError,
)
from mlapi.domain.ports import AttemptLimiter, TokenIssuer
from mlapi.domain.rules import canonical_username
from mlapi.domain.users import User


@attrs.frozen(kw_only=True)
class LoginAttempt:
    """An attempt that was counted: the user of that name, if there is one, and where it comes from."""

    username: str
    address: str
    user: User | None
    address_is_known: bool = False
    """Whether the name was logged in from there before."""


@attrs.frozen(kw_only=True)
class VerifiedLogin:
    """An attempt with the right password."""

    attempt: LoginAttempt
    user: User
    upgrade: Reencrypt | None
    """What stores the password better, if it can be."""


@final
class Authenticator:
    """Log-ins with a name and a password.

    Args:
        users: who may log in.
        tokens: what they get.
        attempts: keeps guessing slow.
    """

    def __init__(self, users: Users, tokens: TokenIssuer, attempts: AttemptLimiter) -> None:
        self.users = users
        self._tokens = tokens
        self._attempts = attempts

    def log_in(self, *, username: str, password: str, address: str = "") -> IssuedToken:
        """Return a token for a user with the right password.

        Args:
            username: in whatever case or spelling.
            password: as typed.
            address: where the attempt comes from.

        Raises:
            InvalidCredentialsError: for a name that nobody has, and for a wrong password.
            UserDisabledError: for the right password of a user who is shut out.
            TooManyAttemptsError: if there were too many, right or wrong.
            RepositoryUnavailableError: if the database is away.
        """
        verified = self.compare(self.begin(username=username, address=address), password)
        if verified.upgrade is not None:
            with suppress(UserNotFoundError, RepositoryUnavailableError):  # then at the next log-in
                self.users.apply(verified.upgrade)
        self.conclude(verified)
        return self.issue(verified)

    def change_password(self, *, user: User, current: str, new: str, address: str = "") -> User:
        """Give a user another password, which ends all of his tokens. For the user himself, who knows the current one.

        Raises:
            InvalidFieldsError: if the new one breaks the policy.
            InvalidCredentialsError, TooManyAttemptsError, RepositoryUnavailableError: as `log_in` does.
            PasswordChangedError: if another one was set meanwhile.
        """
        self.users.check_password(new, field="new")
        verified = self.compare(self.begin(username=user.username, address=address), current)
        changed = self.users.apply(self.prepare_password_change(verified, new))
        self.conclude(verified)
        return changed

    def begin(self, *, username: str, address: str) -> LoginAttempt:
        """Count the attempt, and look the user up.

        Raises:
            TooManyAttemptsError, RepositoryUnavailableError: as `log_in` does.
        """
        try:
            counted: str = canonical_username(username)
        except InvalidFieldsError:
            counted = username  # nobody's: counted all the same
        is_known = self._attempts.count(counted, address)
        user = self.users.find(username)
        return LoginAttempt(username=counted, address=address, user=user, address_is_known=is_known)

    def compare(self, attempt: LoginAttempt, password: str) -> VerifiedLogin:
        """Compare the password: one run of the cipher whatever comes of it, and one more if the stored one is old.

        Raises:
            InvalidCredentialsError: as `log_in` does.
        """
        cipher, user = self.users.cipher, attempt.user
        is_right = cipher.matches(password, None if user is None else user.password)
        if user is None or not is_right:
            raise InvalidCredentialsError
        upgrade = None
        if cipher.needs_upgrade(user.password):
            upgrade = Reencrypt(user_id=user.id, password=cipher.encrypt(password), replacing=user.password)
        return VerifiedLogin(attempt=attempt, user=user, upgrade=upgrade)

    def prepare_password_change(
        self, verified: VerifiedLogin, new: str, *, request_id: str | None = None
    ) -> ChangePassword:
        """Check and encrypt the new password: as much processor time as a registration.

        Raises:
            InvalidFieldsError: if it breaks the policy.
        """
        return self.users.as_actor(Actor.from_user_id(verified.user.id, request_id)).prepare_password(
            user_id=verified.user.id, password=new, replacing=verified.user.password, field="new"
        )

    def conclude(self, verified: VerifiedLogin) -> None:
        """Take the attempt back from the counts, as it was right."""
        attempt = verified.attempt
        self._attempts.record_success(attempt.username, attempt.address, was_known=attempt.address_is_known)

    def issue(self, verified: VerifiedLogin) -> IssuedToken:
        """Return the token. Raises `UserDisabledError` for a user who is shut out."""
        if not verified.user.enabled:
            raise UserDisabledError(verified.user.id)
        return self._tokens.issue(verified.user)


@attrs.frozen(kw_only=True)
class Access:
    """Both ways in: log-ins for people, and the guard for whoever shows what he got there."""

    authenticator: Authenticator
    guard: Guard
