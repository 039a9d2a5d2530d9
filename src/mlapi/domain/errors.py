"""The errors that mlapi raises. They contain only data; `mlapi.entrypoints.wire` turns them into HTTP responses.

MlapiError
├── InvalidFieldsError               one or more fields are invalid
├── UserExistsError                  the username is taken
├── UserNotFoundError                no user has this id
├── PasswordChangedError             the password was changed concurrently
├── UserChangedError                 the user was changed concurrently
├── ApiKeyNotFoundError              no API key has this id
├── TooManyApiKeysError              the user has as many API keys as allowed
├── ManagerExistsError               the name of a manager is taken
├── ManagerNotFoundError             no manager has this name
├── LinkNotFoundError                the one-time link is unknown, used, expired or ended
├── LinkNotAllowedError              the state of the user does not allow a one-time link
├── UserReferencedError              rows in other tables refer to the user
├── ChangeRejectedError              a constraint or trigger in the database rejects the change
├── InvalidCredentialsError          unknown username or wrong password
├── InvalidTokenError                invalid, expired or revoked token or API key
├── AccessDeniedError                valid credentials of a user who has no access now
│   ├── UserDisabledError            the user is disabled
│   ├── UserPendingError             the user has not been enabled yet
│   └── AccessExpiredError           the user's access has expired
├── MailError                        mail cannot be sent; see `mlapi.domain.mail`
│   ├── MailServerError              the mail server is unavailable, or rejects this client
│   ├── MailDelayedError             the server does not accept this mail now
│   └── MailRejectedError            the server will never accept this mail
├── TooManyAttemptsError             too many attempts from one client
├── RequestLimitReachedError         the user has reached a limit of their plan; see `mlapi.domain.plans`
├── ServiceUnavailableError          the service is overloaded; retry later
│   ├── RepositoryUnavailableError   the database is unavailable; retry later
│   │   └── ReadOnlyRepositoryError  this account may only read the database
│   └── SearchUnavailableError       too many searches, or the search takes too long
└── ConfigurationError               the operator must fix the configuration
"""

from collections.abc import Iterable

import attrs


class MlapiError(Exception):
    """Base class of all errors, not raised directly. Two errors are equal if they have the same class and data."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MlapiError) and type(other) is type(self) and self.args == other.args

    def __hash__(self) -> int:
        return hash((type(self), self.args))


@attrs.frozen
class FieldError:
    """An invalid field. The message states the violated rule and never contains the value."""

    field: str
    message: str


@attrs.frozen
class InvalidFieldsError(MlapiError):
    errors: tuple[FieldError, ...]

    def __str__(self) -> str:
        return "; ".join(f"{error.field} {error.message}" for error in self.errors)

    @classmethod
    def raise_for(cls, checks: Iterable[tuple[str, str | None]]) -> None:
        """Raise a single error that lists all invalid fields.

        Args:
            checks: pairs of a field name and an error message. For a valid field, the message is None.

        Raises:
            InvalidFieldsError: if any message is not None.
        """
        errors = [FieldError(field, message) for field, message in checks if message is not None]
        if errors:
            raise cls(tuple(errors))


@attrs.frozen
class UserExistsError(MlapiError):
    """The user ``user_id`` already has this username."""

    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} already has this username"


@attrs.frozen
class UserNotFoundError(MlapiError):
    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} does not exist"


@attrs.frozen
class PasswordChangedError(MlapiError):
    user_id: int

    def __str__(self) -> str:
        return f"the password of user {self.user_id} was changed concurrently"


@attrs.frozen
class UserChangedError(MlapiError):
    """Another request changed a value that the caller expected to be unchanged."""

    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} was changed concurrently"


@attrs.frozen
class ApiKeyNotFoundError(MlapiError):
    key_id: str

    def __str__(self) -> str:
        return "this API key does not exist"


class LinkNotFoundError(MlapiError):
    """Contains no data, so that clients cannot find out what was wrong with a one-time link."""

    def __str__(self) -> str:
        return "the link is unknown, was used or ended, or has expired: ask for a new one"


@attrs.frozen
class LinkNotAllowedError(MlapiError):
    """The user could not use a one-time link in their ``state``: "active", "expired", "disabled" or "pending"."""

    user_id: int
    state: str

    def __str__(self) -> str:
        if self.state in {"disabled", "pending"}:
            return f"user {self.user_id} is {self.state}: enable the user before you make a link"
        return f"the e-mail address of user {self.user_id} needs no verification"


@attrs.frozen
class TooManyApiKeysError(MlapiError):
    """The user already has ``limit`` or more API keys."""

    user_id: int
    limit: int

    def __str__(self) -> str:
        return f"user {self.user_id} already has {self.limit} API keys, which is the maximum: remove one first"


@attrs.frozen
class ManagerExistsError(MlapiError):
    name: str

    def __str__(self) -> str:
        return f"manager {self.name} already exists: choose another name, or remove that manager first"


@attrs.frozen
class ManagerNotFoundError(MlapiError):
    name: str

    def __str__(self) -> str:
        return f"manager {self.name} does not exist: check the name in the list of managers"


@attrs.frozen
class UserReferencedError(MlapiError):
    """The user cannot be removed, because rows in tables of another application refer to it."""

    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} is referenced by other tables: remove those rows first"


@attrs.frozen
class ChangeRejectedError(MlapiError):
    """A constraint or a trigger that another application has added to the database rejects the change.

    ``user_id`` is None for a registration, and for the removal of an API key. ``reason`` contains no stored values.
    """

    user_id: int | None
    reason: str

    def __str__(self) -> str:
        return f"the database rejects this change, check the constraints and triggers on its tables: {self.reason}"


class InvalidCredentialsError(MlapiError):
    """Contains no data, so that clients cannot find out which usernames exist."""

    def __str__(self) -> str:
        return "unknown username or wrong password"


class InvalidTokenError(MlapiError):
    """Contains no data, so that attackers cannot find out which check failed."""

    def __str__(self) -> str:
        return "invalid, expired or revoked token or API key"


class AccessDeniedError(MlapiError):
    """Base class for every rule that denies access to a user with valid credentials. Not raised directly."""


@attrs.frozen
class UserDisabledError(AccessDeniedError):
    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} is disabled"


@attrs.frozen
class UserPendingError(AccessDeniedError):
    user_id: int

    def __str__(self) -> str:
        return f"user {self.user_id} has not been enabled yet"


@attrs.frozen
class AccessExpiredError(AccessDeniedError):
    user_id: int

    def __str__(self) -> str:
        return f"the access of user {self.user_id} has expired"


@attrs.frozen
class TooManyAttemptsError(MlapiError):
    """``retry_after_seconds`` is at least 1.

    ``is_final`` is False if the limit is only reached because of attempts that are still running. These count only if
    they fail, so a retry may succeed.
    """

    retry_after_seconds: int
    is_final: bool = True

    def __str__(self) -> str:
        return f"too many attempts: retry in {self.retry_after_seconds} seconds"


@attrs.frozen
class ServiceUnavailableError(MlapiError):
    """The request cannot be served now: a queue is full, or a call took too long."""

    reason: str
    retry_after_seconds: int = 1

    def __str__(self) -> str:
        return f"the service is unavailable: {self.reason}"


@attrs.frozen
class RepositoryUnavailableError(ServiceUnavailableError):
    """The database is unreachable, locked, full or read-only.

    ``may_be_done`` is True if the connection was lost during a commit, so the change may or may not be stored. Retry
    the same change in that case.
    """

    may_be_done: bool = False

    def __str__(self) -> str:
        return f"the database is unavailable: {self.reason}"


@attrs.frozen
class ReadOnlyRepositoryError(RepositoryUnavailableError):
    """The account lacks the permission to write. Retries fail until an operator grants it."""


@attrs.frozen
class SearchUnavailableError(ServiceUnavailableError):
    """The search was rejected because others are running, or ended because it took too long."""

    def __str__(self) -> str:
        return self.reason


@attrs.frozen
class ConfigurationError(MlapiError):
    """One line for the operator: the problem, then the fix. Contains no secret."""

    message: str

    def __str__(self) -> str:
        return self.message
