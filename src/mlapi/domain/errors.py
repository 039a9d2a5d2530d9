"""What mlapi refuses, and why. Errors carry data; what HTTP makes of them is said in ``entrypoints.wire``.

MlapiError
├── InvalidFieldsError            fields that break a rule, each named
├── UserExistsError               the canonical username is taken
├── UserNotFoundError             no user has this id
├── PasswordChangedError          somebody else has set the password meanwhile
├── ApiKeyNotFoundError           no API key has this id
├── InvalidCredentialsError       no such user, or not his password
├── InvalidTokenError             a token or an API key that lets nobody in (any more)
├── UserDisabledError             the credentials are right, and the user is shut out
├── TooManyAttemptsError          guessing is slow: come again later
├── RepositoryUnavailableError    this cannot be served now; try again
└── ConfigurationError            what an operator must mend before a start
"""

from collections.abc import Iterable

import attrs


class MlapiError(Exception):
    """Whatever mlapi raises on purpose. Never raised itself. Equal to another of its class with the same data."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MlapiError) and type(other) is type(self) and self.args == other.args

    def __hash__(self) -> int:
        return hash((type(self), self.args))


@attrs.frozen
class FieldError:
    """One field at fault. The message says what it must be and never repeats its value."""

    field: str
    message: str


@attrs.frozen
class InvalidFieldsError(MlapiError):
    errors: tuple[FieldError, ...]

    def __str__(self) -> str:
        return "; ".join(f"{error.field} {error.message}" for error in self.errors)

    @classmethod
    def raise_for(cls, problems: Iterable[tuple[str, str | None]]) -> None:
        """Raise once, for all of the (field, message) pairs that have a message.

        Raises:
            InvalidFieldsError: if there is any.
        """
        found = tuple(FieldError(field, message) for field, message in problems if message is not None)
        if found:
            raise cls(found)


@attrs.frozen
class UserExistsError(MlapiError):
    """The unique index has decided: ``user_id`` holds the name."""

    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} already has this username"


@attrs.frozen
class UserNotFoundError(MlapiError):
    user_id: int

    def __str__(self) -> str:
        return f"there is no user {self.user_id}"


@attrs.frozen
class PasswordChangedError(MlapiError):
    user_id: int

    def __str__(self) -> str:
        return f"the password of user {self.user_id} has changed meanwhile"


@attrs.frozen
class ApiKeyNotFoundError(MlapiError):
    key_id: str

    def __str__(self) -> str:
        return "there is no such API key"


class InvalidCredentialsError(MlapiError):
    """Says no more: who asks must not learn which users there are."""

    def __str__(self) -> str:
        return "no such user, or not his password"


class InvalidTokenError(MlapiError):
    """Says no more: who forges must not learn how far he came."""

    def __str__(self) -> str:
        return "a token or an API key that lets nobody in"


@attrs.frozen
class UserDisabledError(MlapiError):
    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} is shut out"


@attrs.frozen
class TooManyAttemptsError(MlapiError):
    """``retry_after`` is in seconds, 1 or more."""

    retry_after: int

    def __str__(self) -> str:
        return f"too many attempts: come again in {self.retry_after} seconds"


@attrs.frozen
class RepositoryUnavailableError(MlapiError):
    """The database is away, locked, full or read-only, or too much waits. Passes; ``retry_after`` is in seconds.

    ``may_be_done`` is True where nobody knows whether a change was made: it went away while it was committing. Ask for
    the same again then.
    """

    reason: str
    retry_after: int = 1
    may_be_done: bool = False

    def __str__(self) -> str:
        return f"this cannot be served now: {self.reason}"


@attrs.frozen
class ConfigurationError(MlapiError):
    """One line for the operator: what is wrong, and what to do. Holds no secret."""

    message: str

    def __str__(self) -> str:
        return self.message
