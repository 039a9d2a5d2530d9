"""What is answered to what: one function for each thing that was done, one table for all that is refused."""

from collections.abc import Sequence
from http import HTTPStatus

import attrs
import msgspec

from mlapi.domain.credentials import ApiKey, IssuedToken
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    MlapiError,
    PasswordChangedError,
    RepositoryUnavailableError,
    TooManyAttemptsError,
    UserDisabledError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.domain.model import User
from mlapi.entrypoints.wire.requests import (
    AdminTokenRequiredError,
    BodyTooLargeError,
    ManagementRefusedError,
    UnreadableBodyError,
    UnsupportedMediaTypeError,
)

_NOT_STORED = (("Cache-Control", "no-store"),)  # RFC 6749, 5.1: of an answer with a credential in it
_ASK_FOR_TOKEN = ("WWW-Authenticate", "Bearer")  # RFC 9110, 11.6.1: of every 401


@attrs.frozen
class Answer:
    """An answer to send: its body is JSON."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def registered(user: User) -> Answer:
    return _answer(HTTPStatus.CREATED, "User created successfully", user_id=user.id)


def permission_updated(user: User) -> Answer:
    return _answer(HTTPStatus.OK, "User permission updated successfully", user_id=user.id)


def removed(_user: User) -> Answer:
    return _answer(HTTPStatus.OK, "User deleted successfully")


def token_issued(issued: IssuedToken) -> Answer:
    body = {"token": issued.token, "token_type": "bearer", "expires_in": issued.expires_in}
    return Answer(HTTPStatus.OK, msgspec.json.encode(body), _NOT_STORED)


def token_valid(_user: User) -> Answer:
    return _answer(HTTPStatus.OK, "Token is valid")


def password_changed(_user: User) -> Answer:
    return Answer(HTTPStatus.NO_CONTENT, b"")


def tokens_ended(user: User) -> Answer:
    return _answer(HTTPStatus.OK, "Tokens ended successfully", user_id=user.id)


def api_key_added(key: ApiKey, secret: str) -> Answer:
    """The only answer that ever shows what the bearer of a key sends."""
    body = {"message": "Key created successfully", "key": secret, **_shown(key)}
    return Answer(HTTPStatus.CREATED, msgspec.json.encode(body), _NOT_STORED)


def api_keys(keys: Sequence[ApiKey]) -> Answer:
    return _shown_answer({"keys": [_shown(key) for key in keys]})


def api_key_removed(_key: ApiKey) -> Answer:
    return _answer(HTTPStatus.OK, "Key deleted successfully")


def users_page(page: Sequence[User], *, more: bool) -> Answer:
    """Answer with users, and the id after which the next page begins, or null for the last one."""
    return _shown_answer({"users": [shown_user(user) for user in page], "next": page[-1].id if more else None})


def user(found: User) -> Answer:
    return _shown_answer(shown_user(found))


def alive() -> Answer:
    return _answer(HTTPStatus.OK, "Alive")


def ready() -> Answer:
    return _answer(HTTPStatus.OK, "Ready")


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
    RepositoryUnavailableError: "Service unavailable, try again",
    ConfigurationError: "Service unavailable, see its log",
}
"""What is said of errors of the core. Those of a request say themselves what is wrong with it."""


def refused(error: MlapiError) -> Answer:
    """Return the answer to whatever our code raises on purpose."""
    status = STATUS_OF[type(error)]
    headers: list[tuple[str, str]] = [_ASK_FOR_TOKEN] if status == HTTPStatus.UNAUTHORIZED else []
    more: dict[str, object] = {}
    match error:
        case InvalidFieldsError(problems=problems):
            more["errors"] = [{"field": problem.field, "message": problem.message} for problem in problems]
        case UserExistsError(user_id=holder):
            more["user_id"] = holder
        case RepositoryUnavailableError(retry_after=seconds) | TooManyAttemptsError(retry_after=seconds):
            headers.append(("Retry-After", str(seconds)))
        case ConfigurationError():  # a database that came after the start, and is not the right one
            headers.append(("Retry-After", "10"))
    return _answer(status, _MESSAGE_OF.get(type(error)) or str(error), headers=headers, **more)


def failed(status: int, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """Return the answer to what a framework refuses by itself: no such path, no such method, an error of ours."""
    return _answer(HTTPStatus(status), HTTPStatus(status).phrase, headers=headers)


def _answer(status: HTTPStatus, message: str, *, headers: Sequence[tuple[str, str]] = (), **more: object) -> Answer:
    return Answer(status, msgspec.json.encode({"message": message, **more}), tuple(headers))


def _shown_answer(body: dict[str, object]) -> Answer:
    """Answer with what is somebody's, and for nobody's cache."""
    return Answer(HTTPStatus.OK, msgspec.json.encode(body), _NOT_STORED)


def shown_user(user: User) -> dict[str, object]:
    return {
        "user_id": user.id,
        "username": user.username,
        "email": user.email,
        "enabled": user.enabled,
        "created_datetime": user.created_datetime,
        "updated_datetime": user.updated_datetime,
    }


def _shown(key: ApiKey) -> dict[str, object]:
    return {
        "key_id": key.id,
        "name": key.name,
        "created_at": key.created_datetime,
        "expires_at": key.expires_datetime,
        "last_used_at": key.last_used_datetime,
    }
