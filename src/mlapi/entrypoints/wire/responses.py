"""Responses: one function for each success, and one table that maps errors to statuses."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal, Self

import attrs
import msgspec

from mlapi.domain.audit import Action, AuditEntry, Result
from mlapi.domain.credentials import ApiKey, IssuedToken
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    FieldError,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    MlapiError,
    PasswordChangedError,
    RepositoryUnavailableError,
    ServiceUnavailableError,
    TooManyAttemptsError,
    UserDisabledError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.users import User
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    BodyTooLargeError,
    UnreadableBodyError,
    UnsupportedMediaTypeError,
)

_NO_STORE = (("Cache-Control", "no-store"),)  # responses with credentials or personal data: RFC 6749, 5.1
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus, "Exposition formats", text-based format
_BEARER_CHALLENGE = ("WWW-Authenticate", "Bearer")  # every 401 has one: RFC 9110, 11.6.1

# Constraints of response fields only document them: msgspec does not check values that it encodes.
_ID = msgspec.Meta(ge=1, description="Never reused.", examples=[1], extra_json_schema={"format": "int64"})
UserNumber = Annotated[int, _ID]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
KeyNumber = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$", examples=["0123456789abcdef"])]
Next = Annotated[
    int | None, msgspec.Meta(description="Value of `after` for the next page. Null if this is the last page.")
]


class ResponseBody(msgspec.Struct, frozen=True):
    """The JSON body of a response, with its keys in order. Its repr omits the values, because they include tokens."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Message(ResponseBody, frozen=True):
    """The result, or the reason for the error."""

    message: str


class UserMessage(Message, frozen=True):
    """The result, or the reason for the error, and the id of the user."""

    user_id: UserNumber


class InvalidInput(Message, frozen=True):
    """Every invalid field, with the rule that it breaks. Values are not repeated."""

    errors: Sequence[FieldError]


class Token(ResponseBody, frozen=True):
    """A token. It is valid until it expires, is revoked, or its user is disabled."""

    token: str
    token_type: Literal["bearer"]
    expires_in: Annotated[int, msgspec.Meta(ge=1, description="Lifetime in seconds.")]


class UserResponse(ResponseBody, frozen=True):
    """A user. Times are in UTC; the password is never returned."""

    user_id: UserNumber
    username: str
    email: str
    enabled: bool
    created_datetime: Time
    updated_datetime: Time

    @classmethod
    def from_user(cls, user: User) -> Self:
        return cls(
            user_id=user.id,
            username=user.username,
            email=user.email,
            enabled=user.enabled,
            created_datetime=user.created_datetime,
            updated_datetime=user.updated_datetime,
        )


class UsersPage(ResponseBody, frozen=True):
    """A page of users, in ascending order of id."""

    users: list[UserResponse]
    next: Next


class ApiKeyResponse(ResponseBody, frozen=True):
    """An API key, without its secret. Times are in UTC."""

    key_id: KeyNumber
    name: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Annotated[Time | None, msgspec.Meta(description="Rounded to the minute.")]

    @classmethod
    def from_api_key(cls, key: ApiKey) -> Self:
        return cls(
            key_id=key.id,
            name=key.name,
            created_at=key.created_datetime,
            expires_at=key.expires_datetime,
            last_used_at=key.last_used_datetime,
        )


class ApiKeys(ResponseBody, frozen=True):
    """The API keys of a user, oldest first."""

    keys: list[ApiKeyResponse]


class NewApiKeyResponse(ResponseBody, frozen=True):
    """A new API key. `key` is the secret that clients send; it is returned only here."""

    message: str
    key: Annotated[str, msgspec.Meta(pattern="^mlapi_[0-9a-f]{16}_[0-9a-f]{64}$")]
    key_id: KeyNumber
    name: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None


class AuditEntryResponse(ResponseBody, frozen=True):
    """One change, applied or rejected, with its actor and request id. The time is in UTC."""

    audit_id: Annotated[int, msgspec.Meta(ge=1)]
    at: Time
    actor: str
    action: Action
    user_id: Annotated[UserNumber | None, msgspec.Meta(description="Null if the change concerned no existing user.")]
    key_id: KeyNumber | None
    outcome: Result
    request_id: str | None

    @classmethod
    def from_entry(cls, entry: AuditEntry) -> Self:
        return cls(
            audit_id=entry.id,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            user_id=entry.user_id,
            key_id=entry.api_key_id,
            outcome=entry.outcome,
            request_id=entry.request_id,
        )


class AuditPage(ResponseBody, frozen=True):
    """A page of audit entries, newest first."""

    entries: list[AuditEntryResponse]
    next: Next


@attrs.frozen
class Response:
    """A response to send. Empty bodies have no Content-Type."""

    status: HTTPStatus
    body: bytes = attrs.field(repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = "application/json"


# --- successes


def user_registered(user: User) -> Response:
    return _response(HTTPStatus.CREATED, UserMessage("User created successfully", user.id))


def permission_updated(user: User) -> Response:
    return _response(HTTPStatus.OK, UserMessage("User permission updated successfully", user.id))


def user_removed(_user: User) -> Response:
    return _response(HTTPStatus.OK, Message("User deleted successfully"))


def token_issued(issued: IssuedToken) -> Response:
    return _response(HTTPStatus.OK, Token(issued.token, "bearer", issued.expires_in), _NO_STORE)


def token_valid(_user: User) -> Response:
    return _response(HTTPStatus.OK, Message("Token is valid"))


def password_changed(_user: User) -> Response:
    return Response(HTTPStatus.NO_CONTENT, b"")


def tokens_ended(user: User) -> Response:
    return _response(HTTPStatus.OK, UserMessage("Tokens ended successfully", user.id))


def api_key_added(key: ApiKey, secret: str) -> Response:
    """Return the only response that ever contains the secret of an API key."""
    fields = msgspec.structs.asdict(ApiKeyResponse.from_api_key(key))
    return _response(HTTPStatus.CREATED, NewApiKeyResponse("Key created successfully", secret, **fields), _NO_STORE)


def api_keys(keys: Sequence[ApiKey]) -> Response:
    return _response(HTTPStatus.OK, ApiKeys([ApiKeyResponse.from_api_key(key) for key in keys]), _NO_STORE)


def api_key_removed(_key: ApiKey) -> Response:
    return _response(HTTPStatus.OK, Message("Key deleted successfully"))


def user(found: User) -> Response:
    return _response(HTTPStatus.OK, UserResponse.from_user(found), _NO_STORE)


def users_page(page: Sequence[User], *, more: bool) -> Response:
    """Return a page of users. If there are more, ``next`` is the id of the last one."""
    body = UsersPage([UserResponse.from_user(user) for user in page], page[-1].id if more else None)
    return _response(HTTPStatus.OK, body, _NO_STORE)


def audit_page(page: Sequence[AuditEntry], *, more: bool) -> Response:
    """Return a page of audit entries. If there are more, ``next`` is the id of the last one."""
    body = AuditPage([AuditEntryResponse.from_entry(entry) for entry in page], page[-1].id if more else None)
    return _response(HTTPStatus.OK, body, _NO_STORE)


def metrics(exposition: bytes) -> Response:
    return Response(HTTPStatus.OK, exposition, media_type=PROMETHEUS_TEXT)


def alive() -> Response:
    return _response(HTTPStatus.OK, Message("Alive"))


def ready() -> Response:
    return _response(HTTPStatus.OK, Message("Ready"))


# --- errors


@attrs.frozen
class ErrorEntry:
    """The response for a class of errors. ``example`` and ``description`` are for the OpenAPI description.

    ``message`` is None for errors of a request, whose own text explains them to the client.
    """

    example: MlapiError
    status: HTTPStatus
    message: str | None
    description: str


_ENTRIES = (
    ErrorEntry(
        InvalidFieldsError((FieldError("username", "is missing"),)),
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "Invalid input",
        "One or more fields or parameters are invalid. `errors` lists all of them, without repeating their values.",
    ),
    ErrorEntry(
        UserExistsError(1),
        HTTPStatus.CONFLICT,
        "User already exists",
        "The username is taken, possibly in another case or spelling. `user_id` is the id of that user.",
    ),
    ErrorEntry(UserNotFoundError(2), HTTPStatus.NOT_FOUND, "User not found", "The user does not exist."),
    ErrorEntry(
        PasswordChangedError(1),
        HTTPStatus.CONFLICT,
        "The password was changed meanwhile, log in again",
        "The password was changed by another request in the meantime.",
    ),
    ErrorEntry(ApiKeyNotFoundError(""), HTTPStatus.NOT_FOUND, "Key not found", "The API key does not exist."),
    ErrorEntry(
        InvalidCredentialsError(), HTTPStatus.UNAUTHORIZED, "Invalid credentials", "Unknown user or wrong password."
    ),
    ErrorEntry(
        InvalidTokenError(),
        HTTPStatus.UNAUTHORIZED,
        "Invalid token",
        "The token or API key is forged, expired or revoked, or its user was removed.",
    ),
    ErrorEntry(UserDisabledError(1), HTTPStatus.FORBIDDEN, "User is disabled", "The user is disabled."),
    ErrorEntry(
        TooManyAttemptsError(30),
        HTTPStatus.TOO_MANY_REQUESTS,
        "Too many attempts, try again later",
        "Too many login attempts. Wait for as long as `Retry-After` says.",
    ),
    ErrorEntry(
        ServiceUnavailableError("overloaded"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Service unavailable, try again",
        "Too many requests are waiting.",
    ),
    ErrorEntry(
        RepositoryUnavailableError("unavailable"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Service unavailable, try again",
        "The database is unavailable. `message` says if the change may have been applied nevertheless.",
    ),
    ErrorEntry(
        ConfigurationError(""),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Service unavailable, see its log",
        "The service is connected to another database than configured.",
    ),
    ErrorEntry(
        UnreadableBodyError("it is not UTF-8"), HTTPStatus.BAD_REQUEST, None, "The body is not strict JSON in UTF-8."
    ),
    ErrorEntry(BodyTooLargeError(), HTTPStatus.REQUEST_ENTITY_TOO_LARGE, None, "The body is too large."),
    ErrorEntry(
        UnsupportedMediaTypeError(), HTTPStatus.UNSUPPORTED_MEDIA_TYPE, None, "The body is not `application/json`."
    ),
    ErrorEntry(AdminTokenRequiredError(), HTTPStatus.UNAUTHORIZED, None, "This operation needs the admin token."),
    ErrorEntry(
        AdminAccessDeniedError("Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"),
        HTTPStatus.FORBIDDEN,
        None,
        "No admin token is configured, so only programs on the same machine may manage users, or none at all.",
    ),
)
ERRORS: dict[type[MlapiError], ErrorEntry] = {type(entry.example): entry for entry in _ENTRIES}
"""To add an error, add an entry here. A test checks that it has every subclass of `MlapiError`."""
_OUTCOME_UNKNOWN = "Service unavailable, try again: this may have been done already"
_CONFIGURATION_RETRY_SECONDS = "10"


def error_response(error: MlapiError) -> Response:
    """Return the response for an error that mlapi raised."""
    entry = ERRORS[type(error)]
    status = entry.status
    headers: list[tuple[str, str]] = [_BEARER_CHALLENGE] if status == HTTPStatus.UNAUTHORIZED else []
    message = entry.message or str(error)
    body = Message(message)
    match error:
        case InvalidFieldsError(errors=errors):
            body = InvalidInput(message, errors)
        case UserExistsError(user_id=user_id):
            body = UserMessage(message, user_id)
        case ServiceUnavailableError(retry_after=seconds) | TooManyAttemptsError(retry_after=seconds):
            headers.append(("Retry-After", str(seconds)))
            if isinstance(error, RepositoryUnavailableError) and error.may_be_done:
                body = Message(_OUTCOME_UNKNOWN)
        case ConfigurationError():  # the database was replaced by another one after the start
            headers.append(("Retry-After", _CONFIGURATION_RETRY_SECONDS))
    return _response(status, body, tuple(headers))


def http_error_response(status: int, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """Return the response for an error of the framework: unknown path, wrong method, or an unhandled exception."""
    return _response(HTTPStatus(status), Message(HTTPStatus(status).phrase), tuple(headers))


def ambiguous_framing() -> Response:
    """Return the response for a request with ambiguous framing, after which the connection is closed."""
    message = "The end of the body is ambiguous: send exactly one Content-Length, and no Upgrade"
    return _response(HTTPStatus.BAD_REQUEST, Message(message), (("Connection", "close"),))


_encode = msgspec.json.Encoder().encode


def _response(status: HTTPStatus, body: ResponseBody, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status, _encode(body), headers)
