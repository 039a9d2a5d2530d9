"""Error responses, and a table with the status, message and description of every error."""

from collections.abc import Sequence
from http import HTTPStatus

import attrs
import msgspec

from mlapi.domain.errors import (
    AccessDeniedError,
    AccessExpiredError,
    ApiKeyNotFoundError,
    ChangeRejectedError,
    ConfigurationError,
    FieldError,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    LinkNotAllowedError,
    LinkNotFoundError,
    ManagerExistsError,
    ManagerNotFoundError,
    MlapiError,
    PasswordChangedError,
    RepositoryUnavailableError,
    SearchUnavailableError,
    ServiceUnavailableError,
    TooManyApiKeysError,
    TooManyAttemptsError,
    UserChangedError,
    UserDisabledError,
    UserExistsError,
    UserNotFoundError,
    UserPendingError,
    UserReferencedError,
)
from mlapi.domain.plans import Allowance, AllowanceState, RequestLimitReachedError, Window
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    ApiKeyNotAcceptedError,
    BodyTooLargeError,
    HeadersTooLargeError,
    MissingCredentialError,
    OwnApiKeysDisabledError,
    TokenRequiredError,
    UnreadableBodyError,
    UnsupportedContentEncodingError,
    UnsupportedGrantTypeError,
    UnsupportedMediaTypeError,
    UriTooLongError,
    UserIsNotAdminError,
    ViewerRoleError,
    WrongAdminTokenError,
    WrongManagerTokenError,
)
from mlapi.entrypoints.wire.rate_limits import rate_limit_headers
from mlapi.entrypoints.wire.responses import InvalidInput, Message, Response, UserMessage, json_response

BEARER_CHALLENGE = ("WWW-Authenticate", "Bearer")  # every 401 has a challenge: RFC 9110, 11.6.1
_INVALID_TOKEN_CHALLENGE = ("WWW-Authenticate", 'Bearer error="invalid_token"')  # RFC 6750, 3.1


@attrs.frozen
class ErrorEntry:
    """The response for a class of errors. The OpenAPI description contains ``example`` and ``description``.

    If ``message`` is None, clients receive the text of the error.
    """

    example: MlapiError
    status: HTTPStatus
    message: str | None
    description: str


_ALLOWANCE = Allowance("requests", Window.MINUTE, 60)
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
        "The username is taken, possibly in a different case or spelling. `user_id` is the id of that user.",
    ),
    ErrorEntry(UserNotFoundError(2), HTTPStatus.NOT_FOUND, "User not found", "The user does not exist."),
    ErrorEntry(
        PasswordChangedError(1),
        HTTPStatus.CONFLICT,
        "The password was changed by another request, log in again",
        "Another request changed the password at the same time.",
    ),
    ErrorEntry(
        UserChangedError(1),
        HTTPStatus.CONFLICT,
        "The user was changed by another request, check them and try again",
        "Another request changed the user at the same time.",
    ),
    ErrorEntry(
        UserReferencedError(1),
        HTTPStatus.CONFLICT,
        "User is referenced by other tables",
        "Rows in other tables of the database refer to the user. Remove those rows first.",
    ),
    ErrorEntry(
        ChangeRejectedError(1, "a constraint was violated"),
        HTTPStatus.CONFLICT,
        "The database rejects this change",
        "A constraint or trigger that another application has added to the database rejects the change.",
    ),
    ErrorEntry(ApiKeyNotFoundError(""), HTTPStatus.NOT_FOUND, "Key not found", "The API key does not exist."),
    ErrorEntry(
        TooManyApiKeysError(1, 10),
        HTTPStatus.CONFLICT,
        "Too many API keys, remove one first",
        "The user has as many API keys as `keys.per_user` allows. Managers can create more.",
    ),
    ErrorEntry(
        LinkNotFoundError(),
        HTTPStatus.NOT_FOUND,
        "Link is not valid, ask for a new one",
        "The link is unknown, has been used, has expired, or was ended by a change to the user.",
    ),
    ErrorEntry(
        LinkNotAllowedError(1, "disabled"),
        HTTPStatus.CONFLICT,
        None,
        "The user is disabled or pending, so they could not use a link. Enable the user first.",
    ),
    ErrorEntry(
        OwnApiKeysDisabledError(), HTTPStatus.FORBIDDEN, None, "`account.keys` is false. Managers add the API keys."
    ),
    ErrorEntry(
        ManagerExistsError("alice"), HTTPStatus.CONFLICT, "Manager already exists", "Another manager has this name."
    ),
    ErrorEntry(ManagerNotFoundError("alice"), HTTPStatus.NOT_FOUND, "Manager not found", "No manager has this name."),
    ErrorEntry(
        InvalidCredentialsError(), HTTPStatus.UNAUTHORIZED, "Invalid credentials", "Unknown user or wrong password."
    ),
    ErrorEntry(
        InvalidTokenError(),
        HTTPStatus.UNAUTHORIZED,
        "Invalid token",
        "The token or API key is forged, expired or revoked, or its user was removed.",
    ),
    ErrorEntry(MissingCredentialError(), HTTPStatus.UNAUTHORIZED, None, "The request has no token and no API key."),
    ErrorEntry(TokenRequiredError(), HTTPStatus.UNAUTHORIZED, None, "The request has no token."),
    ErrorEntry(ApiKeyNotAcceptedError(), HTTPStatus.UNAUTHORIZED, None, "API keys are not accepted here."),
    ErrorEntry(UserDisabledError(1), HTTPStatus.FORBIDDEN, "User is disabled", "The user is disabled."),
    ErrorEntry(UserPendingError(1), HTTPStatus.FORBIDDEN, "User is pending", "The user has not been enabled yet."),
    ErrorEntry(AccessExpiredError(1), HTTPStatus.FORBIDDEN, "Access has expired", "The user's access has expired."),
    ErrorEntry(
        TooManyAttemptsError(30),
        HTTPStatus.TOO_MANY_REQUESTS,
        "Too many attempts, try again later",
        "Too many requests of this kind from one client. Wait for the number of seconds in `Retry-After`.",
    ),
    ErrorEntry(
        RequestLimitReachedError(_ALLOWANCE, 34, (AllowanceState(_ALLOWANCE, remaining=0, reset_seconds=34),)),
        HTTPStatus.TOO_MANY_REQUESTS,
        None,
        "The user has reached a limit of their plan. Wait for the number of seconds in `Retry-After`.",
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
        "The database is unavailable. `message` says so if the change may have been applied.",
    ),
    ErrorEntry(
        SearchUnavailableError("Two other searches are running: try again in a moment"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        None,
        "Two other searches are running, or this one takes longer than 5 seconds. `message` says which.",
    ),
    ErrorEntry(
        ConfigurationError(""),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Service unavailable, see the server log",
        "The service is connected to the wrong database.",
    ),
    ErrorEntry(UnreadableBodyError("it is not UTF-8"), HTTPStatus.BAD_REQUEST, None, "The body cannot be decoded."),
    ErrorEntry(BodyTooLargeError(), HTTPStatus.REQUEST_ENTITY_TOO_LARGE, None, "The body is too large."),
    ErrorEntry(UriTooLongError(), HTTPStatus.REQUEST_URI_TOO_LONG, None, "The path or the query is too long."),
    ErrorEntry(
        HeadersTooLargeError(),
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        None,
        "There are too many headers, or one is too long.",
    ),
    ErrorEntry(
        UnsupportedMediaTypeError(),
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        None,
        "The media type is not supported, or its charset is not UTF-8.",
    ),
    ErrorEntry(UnsupportedContentEncodingError(), HTTPStatus.UNSUPPORTED_MEDIA_TYPE, None, "The body is compressed."),
    ErrorEntry(
        UnsupportedGrantTypeError(), HTTPStatus.BAD_REQUEST, None, "The `grant_type` of the form is not `password`."
    ),
    ErrorEntry(AdminTokenRequiredError(), HTTPStatus.UNAUTHORIZED, None, "This operation needs the admin token."),
    ErrorEntry(WrongAdminTokenError(), HTTPStatus.UNAUTHORIZED, None, "The admin token is wrong."),
    ErrorEntry(
        WrongManagerTokenError(), HTTPStatus.UNAUTHORIZED, None, "The manager's token is unknown, or it has expired."
    ),
    ErrorEntry(ViewerRoleError("alice"), HTTPStatus.FORBIDDEN, None, "Managers with the role `viewer` may only read."),
    ErrorEntry(
        UserIsNotAdminError(), HTTPStatus.UNAUTHORIZED, None, "A user's token or API key gives no admin access."
    ),
    ErrorEntry(
        AdminAccessDeniedError("Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"),
        HTTPStatus.FORBIDDEN,
        None,
        "No admin token is configured, so only programs on the same machine, or no clients at all, may manage users.",
    ),
)
ERRORS: dict[type[MlapiError], ErrorEntry] = {type(entry.example): entry for entry in _ENTRIES}
"""To add an error, add an entry, unless the entry of its base class fits. A test checks that every error has one."""
_INVALID_TOKEN_ERRORS = frozenset(
    {InvalidTokenError, ApiKeyNotAcceptedError, WrongAdminTokenError, WrongManagerTokenError, UserIsNotAdminError}
)
"""The errors for a credential that is present but does not grant access."""
_OUTCOME_UNKNOWN = "Service unavailable, try again: this may have been done already"
_CONFIGURATION_RETRY_SECONDS = "10"


def error_response(error: MlapiError) -> Response:
    """Return the response for an error that mlapi raised."""
    entry = next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
    status = entry.status
    headers: list[tuple[str, str]] = []
    if status == HTTPStatus.UNAUTHORIZED:
        headers.append(_INVALID_TOKEN_CHALLENGE if type(error) in _INVALID_TOKEN_ERRORS else BEARER_CHALLENGE)
    message = entry.message or str(error)
    body = Message(message)
    match error:
        case InvalidFieldsError(errors=errors):
            body = InvalidInput(message, errors)
        case UserExistsError(user_id=user_id):
            body = UserMessage(message, user_id)
        case (
            ServiceUnavailableError(retry_after_seconds=seconds)
            | TooManyAttemptsError(retry_after_seconds=seconds)
            | RequestLimitReachedError(retry_after_seconds=seconds)
        ):
            headers.append(("Retry-After", str(seconds)))
            if isinstance(error, RepositoryUnavailableError) and error.may_be_done:
                body = Message(_OUTCOME_UNKNOWN)
            if isinstance(error, RequestLimitReachedError):
                headers.extend(rate_limit_headers(error.states))
        case UnsupportedContentEncodingError():
            headers.append(("Accept-Encoding", "identity"))  # RFC 9110, 15.5.16
        case ConfigurationError():  # the database was replaced after startup
            headers.append(("Retry-After", _CONFIGURATION_RETRY_SECONDS))
    return json_response(status, body, tuple(headers))


def oauth_error_response(response: Response, error: MlapiError) -> Response:
    """Add the fields that OAuth clients expect (RFC 6749, 5.2) to the response for an error.

    The status is the same as for a JSON request, although RFC 6749 requires 400.
    """
    fields = msgspec.json.decode(response.body)
    match error:
        case InvalidCredentialsError() | AccessDeniedError():
            code = "invalid_grant"
        case UnsupportedGrantTypeError():
            code = "unsupported_grant_type"
        case InvalidFieldsError() | UnreadableBodyError():
            code = "invalid_request"
        case _:
            code = "temporarily_unavailable"
    body = msgspec.json.encode({**fields, "error": code, "error_description": fields["message"]})
    return attrs.evolve(response, body=body)


def proxy_error_response(response: Response) -> Response:
    """Return a copy of an error response of ``/verify`` with its body in a header, because nginx discards the body."""
    header = ("X-Auth-Request-Error", response.body.decode("latin-1"))
    return attrs.evolve(response, headers=(*response.headers, header))


def http_error_response(status: int, headers: Sequence[tuple[str, str]] = (), message: str | None = None) -> Response:
    """Return the response for an error of the framework or server, such as an unknown path or a wrong method.

    Args:
        status: the status of the response.
        headers: additional headers.
        message: the message, by default the name of the status.
    """
    return json_response(HTTPStatus(status), Message(message or HTTPStatus(status).phrase), tuple(headers))


def ambiguous_framing() -> Response:
    """Return the response for a request with ambiguous framing. It closes the connection."""
    message = "The end of the body is ambiguous: send exactly one Content-Length, and no Upgrade"
    return json_response(HTTPStatus.BAD_REQUEST, Message(message), (("Connection", "close"),))
