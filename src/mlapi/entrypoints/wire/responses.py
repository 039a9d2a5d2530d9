"""What is answered to what: one function for each thing that was done, one table for all that is refused."""

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

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
from mlapi.entrypoints.wire.requests import (
    AdminTokenRequiredError,
    BodyTooLargeError,
    ManagementRefusedError,
    UnreadableBodyError,
    UnsupportedMediaTypeError,
)

_NOT_STORED = (("Cache-Control", "no-store"),)  # RFC 6749, 5.1: of an answer with a credential in it
_ASK_FOR_TOKEN = ("WWW-Authenticate", "Bearer")  # RFC 9110, 11.6.1: of every 401


# Numbers and texts are only described here: what is sent is not checked.
_ID = msgspec.Meta(ge=1, description="Never given twice.", examples=[1], extra_json_schema={"format": "int64"})
UserNumber = Annotated[int, _ID]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
KeyNumber = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$", examples=["0123456789abcdef"])]
Next = Annotated[int | None, msgspec.Meta(description="The `after` of the next page; null on the last one.")]


class ResponseBody(msgspec.Struct, frozen=True):
    """What an answer says, in the order in which it says it. Never shown: there may be a token in it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Message(ResponseBody, frozen=True):
    """What was done, or why it was not."""

    message: str


class UserMessage(Message, frozen=True):
    """What was done, or why it was not, and the user whom it is about."""

    user_id: UserNumber


class InvalidInput(Message, frozen=True):
    """Every field at fault, with what it must be. No value is repeated."""

    errors: Sequence[FieldError]


class Token(ResponseBody, frozen=True):
    """What lets its user in, until it ends or he is shut out."""

    token: str
    token_type: Literal["bearer"]
    expires_in: Annotated[int, msgspec.Meta(ge=1, description="Seconds.")]


class UserResponse(ResponseBody, frozen=True):
    """A user, without a trace of his password. Times are in UTC."""

    user_id: UserNumber
    username: str
    email: str
    enabled: bool
    created_datetime: Time
    updated_datetime: Time


class UsersPage(ResponseBody, frozen=True):
    """Users by rising id."""

    users: list[UserResponse]
    next: Next


class ApiKeyResponse(ResponseBody, frozen=True):
    """An API key, without what its bearer sends. Times are in UTC."""

    key_id: KeyNumber
    name: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Annotated[Time | None, msgspec.Meta(description="To the minute.")]


class ApiKeys(ResponseBody, frozen=True):
    """The API keys of a user, the oldest first."""

    keys: list[ApiKeyResponse]


class NewApiKeyResponse(ResponseBody, frozen=True):
    """A new API key, with what its bearer sends: shown here and never again."""

    message: str
    key: Annotated[str, msgspec.Meta(pattern="^mlapi_[0-9a-f]{16}_[0-9a-f]{64}$")]
    key_id: KeyNumber
    name: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None


class AuditEntryResponse(ResponseBody, frozen=True):
    """One change, made or refused; who made it, and in which request. The time is in UTC."""

    audit_id: Annotated[int, msgspec.Meta(ge=1)]
    at: Time
    actor: str
    action: Action
    user_id: Annotated[UserNumber | None, msgspec.Meta(description="Null where nobody can have been meant.")]
    key_id: KeyNumber | None
    outcome: Result
    request_id: str | None


class AuditPage(ResponseBody, frozen=True):
    """What was done, the newest first."""

    entries: list[AuditEntryResponse]
    next: Next


@attrs.frozen
class Response:
    """An answer to send: its body is JSON."""

    status: HTTPStatus
    body: bytes = attrs.field(repr=False)
    headers: tuple[tuple[str, str], ...] = ()


def registered(user: User) -> Response:
    return _answer(HTTPStatus.CREATED, UserMessage("User created successfully", user.id))


def permission_updated(user: User) -> Response:
    return _answer(HTTPStatus.OK, UserMessage("User permission updated successfully", user.id))


def removed(_user: User) -> Response:
    return _answer(HTTPStatus.OK, Message("User deleted successfully"))


def token_issued(issued: IssuedToken) -> Response:
    return _answer(HTTPStatus.OK, Token(issued.token, "bearer", issued.expires_in), _NOT_STORED)


def token_valid(_user: User) -> Response:
    return _answer(HTTPStatus.OK, Message("Token is valid"))


def password_changed(_user: User) -> Response:
    return Response(HTTPStatus.NO_CONTENT, b"")


def tokens_ended(user: User) -> Response:
    return _answer(HTTPStatus.OK, UserMessage("Tokens ended successfully", user.id))


def api_key_added(key: ApiKey, secret: str) -> Response:
    """The only answer that ever shows what the bearer of a key sends."""
    shown = msgspec.structs.asdict(_shown(key))
    return _answer(HTTPStatus.CREATED, NewApiKeyResponse("Key created successfully", secret, **shown), _NOT_STORED)


def api_keys(keys: Sequence[ApiKey]) -> Response:
    return _answer(HTTPStatus.OK, ApiKeys([_shown(key) for key in keys]), _NOT_STORED)


def api_key_removed(_key: ApiKey) -> Response:
    return _answer(HTTPStatus.OK, Message("Key deleted successfully"))


def users_page(page: Sequence[User], *, more: bool) -> Response:
    """Answer with users, and the id after which the next page begins, or null for the last one."""
    shown = UsersPage([shown_user(user) for user in page], page[-1].id if more else None)
    return _answer(HTTPStatus.OK, shown, _NOT_STORED)


def user(found: User) -> Response:
    return _answer(HTTPStatus.OK, shown_user(found), _NOT_STORED)


def audit_page(entries: Sequence[AuditEntry], *, more: bool) -> Response:
    """Answer with entries, and the id after which the next page begins, or null for the last one."""
    shown = AuditPage([_shown_entry(entry) for entry in entries], entries[-1].id if more else None)
    return _answer(HTTPStatus.OK, shown, _NOT_STORED)


def alive() -> Response:
    return _answer(HTTPStatus.OK, Message("Alive"))


def ready() -> Response:
    return _answer(HTTPStatus.OK, Message("Ready"))


STATUS_OF: dict[type[MlapiError], HTTPStatus] = {
    InvalidFieldsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UserExistsError: HTTPStatus.CONFLICT,
    UserNotFoundError: HTTPStatus.NOT_FOUND,
    PasswordChangedError: HTTPStatus.CONFLICT,
    ApiKeyNotFoundError: HTTPStatus.NOT_FOUND,
    InvalidCredentialsError: HTTPStatus.UNAUTHORIZED,
    InvalidTokenError: HTTPStatus.UNAUTHORIZED,
    UserDisabledError: HTTPStatus.FORBIDDEN,
    TooManyAttemptsError: HTTPStatus.TOO_MANY_REQUESTS,
    ServiceUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    RepositoryUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    ConfigurationError: HTTPStatus.SERVICE_UNAVAILABLE,
    UnreadableBodyError: HTTPStatus.BAD_REQUEST,
    BodyTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    AdminTokenRequiredError: HTTPStatus.UNAUTHORIZED,
    ManagementRefusedError: HTTPStatus.FORBIDDEN,
}
"""The one table from what is raised to what is answered. Total: a test walks every subclass of `MlapiError`."""

_MESSAGE_OF: dict[type[MlapiError], str] = {
    InvalidFieldsError: "Invalid input",
    UserExistsError: "User already exists",
    UserNotFoundError: "User not found",
    PasswordChangedError: "The password was changed meanwhile, log in again",
    ApiKeyNotFoundError: "Key not found",
    InvalidCredentialsError: "Invalid credentials",
    InvalidTokenError: "Invalid token",
    UserDisabledError: "User is disabled",
    TooManyAttemptsError: "Too many attempts, try again later",
    ServiceUnavailableError: "Service unavailable, try again",
    RepositoryUnavailableError: "Service unavailable, try again",
    ConfigurationError: "Service unavailable, see its log",
}
"""What is said of errors of the core. Those of a request say themselves what is wrong with it."""
_MAY_BE_DONE = "Service unavailable, try again: this may have been done already"


def refused(error: MlapiError) -> Response:
    """Return the answer to whatever our code raises on purpose."""
    status = STATUS_OF[type(error)]
    headers: list[tuple[str, str]] = [_ASK_FOR_TOKEN] if status == HTTPStatus.UNAUTHORIZED else []
    message = _MESSAGE_OF.get(type(error)) or str(error)
    body = Message(message)
    match error:
        case InvalidFieldsError(errors=problems):
            body = InvalidInput(message, problems)
        case UserExistsError(user_id=holder):
            body = UserMessage(message, holder)
        case ServiceUnavailableError(retry_after=seconds) | TooManyAttemptsError(retry_after=seconds):
            headers.append(("Retry-After", str(seconds)))
            if isinstance(error, RepositoryUnavailableError) and error.may_be_done:
                body = Message(_MAY_BE_DONE)
        case ConfigurationError():  # a database that came after the start, and is not the right one
            headers.append(("Retry-After", "10"))
    return _answer(status, body, tuple(headers))


def failed(status: int, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """Return the answer to what a framework refuses by itself: no such path, no such method, an error of ours."""
    return _answer(HTTPStatus(status), Message(HTTPStatus(status).phrase), tuple(headers))


def shown_user(user: User) -> UserResponse:
    return UserResponse(
        user_id=user.id,
        username=user.username,
        email=user.email,
        enabled=user.enabled,
        created_datetime=user.created_datetime,
        updated_datetime=user.updated_datetime,
    )


def uncertain_length() -> Response:
    """Refuse a request whose end may be elsewhere, as the last one on its connection."""
    message = "Where the body ends is not certain: send it with one Content-Length and without Upgrade"
    return _answer(HTTPStatus.BAD_REQUEST, Message(message), (("Connection", "close"),))


_encode = msgspec.json.Encoder().encode


def _answer(status: HTTPStatus, body: ResponseBody, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(status, _encode(body), headers)


def _shown(key: ApiKey) -> ApiKeyResponse:
    return ApiKeyResponse(
        key_id=key.id,
        name=key.name,
        created_at=key.created_datetime,
        expires_at=key.expires_datetime,
        last_used_at=key.last_used_datetime,
    )


def _shown_entry(entry: AuditEntry) -> AuditEntryResponse:
    return AuditEntryResponse(
        audit_id=entry.id,
        at=entry.at,
        actor=entry.actor,
        action=entry.action,
        user_id=entry.user_id,
        key_id=entry.api_key_id,
        outcome=entry.outcome,
        request_id=entry.request_id,
    )
