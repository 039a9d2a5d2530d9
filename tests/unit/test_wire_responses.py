"""Responses: the exact status, body and headers of every success and error."""

import importlib
import pkgutil
import re
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import attrs
import pytest

import mlapi
from mlapi.domain import errors
from mlapi.domain.audit import AuditEntry, AuditId
from mlapi.domain.credentials import ApiKey, ApiKeyId, IssuedToken
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
from mlapi.domain.mail import MailError
from mlapi.domain.plans import Allowance, AllowanceState, RequestLimitReachedError, Window
from mlapi.domain.users import EncryptedPassword, User, UserId
from mlapi.entrypoints.wire import reports, responses, user_lists
from mlapi.entrypoints.wire.error_responses import ERRORS, error_response, http_error_response
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    ApiKeyNotAcceptedError,
    BodyTooLargeError,
    HeadersTooLargeError,
    MissingCredentialError,
    OwnApiKeysDisabledError,
    RequestError,
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
from mlapi.entrypoints.wire.responses import Response

PER_MINUTE = Allowance("requests", Window.MINUTE, 60)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADA = User(
    id=UserId(7),
    username="ada",
    password=EncryptedPassword("stored-password"),
    email="ada@example.com",
    enabled=True,
    created_datetime=NOON,
    updated_datetime=NOON,
    token_epoch="the-epoch",
)
INVALID_TOKEN_CHALLENGE = (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
SECRET = f"mlapi_0123456789abcdef_{'0' * 64}"
KEY = ApiKey(
    id=ApiKeyId("0123456789abcdef"),
    user_id=ADA.id,
    name="laptop",
    digest="the-digest",
    created_datetime=NOON,
    expires_datetime=NOON + timedelta(days=1),
    last_used_datetime=NOON + timedelta(microseconds=1),
)
ENTRY = AuditEntry(
    id=AuditId(9),
    at=NOON,
    actor="admin",
    action="add_api_key",
    user_id=ADA.id,
    api_key_id=KEY.id,
    outcome="done",
    request_id="request-7",
)

# --- successes


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        pytest.param(
            responses.user_registered(ADA), 201, b'{"message":"User created successfully","user_id":7}', id="registered"
        ),
        pytest.param(
            responses.permission_updated(ADA),
            200,
            b'{"message":"User permission updated successfully","user_id":7}',
            id="permission updated",
        ),
        pytest.param(responses.user_removed(ADA), 200, b'{"message":"User deleted successfully"}', id="removed"),
        pytest.param(responses.token_valid(ADA), 200, b'{"message":"Token is valid"}', id="token valid"),
        pytest.param(responses.password_changed(ADA), 204, b"", id="password changed"),
        pytest.param(
            responses.tokens_ended(ADA), 200, b'{"message":"Tokens ended successfully","user_id":7}', id="tokens ended"
        ),
        pytest.param(
            responses.api_key_removed(KEY), 200, b'{"message":"Key deleted successfully"}', id="API key removed"
        ),
        pytest.param(responses.alive(), 200, b'{"message":"Alive"}', id="alive"),
        pytest.param(responses.ready(), 200, b'{"message":"Ready"}', id="ready"),
        pytest.param(http_error_response(404), 404, b'{"message":"Not Found"}', id="unknown path"),
        pytest.param(http_error_response(500), 500, b'{"message":"Internal Server Error"}', id="server error"),
    ],
)
def test_success_has_the_documented_status_and_body(response: Response, status: int, body: bytes) -> None:
    assert response == Response(HTTPStatus(status), body)


def test_response_with_a_token_is_not_cacheable() -> None:
    assert responses.token_issued(IssuedToken("the.token", 3600)) == Response(
        HTTPStatus.OK,
        b'{"token":"the.token","token_type":"bearer","expires_in":3600}',
        (("Cache-Control", "no-store"),),
    )


def test_response_with_an_api_key_is_not_cacheable() -> None:
    assert responses.api_key_added(attrs.evolve(KEY, last_used_datetime=None), SECRET) == Response(
        HTTPStatus.CREATED,
        f'{{"message":"Key created successfully","key":"{SECRET}","key_id":"0123456789abcdef","name":"laptop",'
        '"created_at":"2026-03-01T12:00:00Z","expires_at":"2026-03-02T12:00:00Z","last_used_at":null}'.encode(),
        (("Cache-Control", "no-store"),),
    )


@pytest.mark.parametrize(
    ("response", "body"),
    [
        pytest.param(
            responses.api_keys([KEY, attrs.evolve(KEY, name="é", expires_datetime=None, last_used_datetime=None)]),
            b'{"keys":[{"key_id":"0123456789abcdef","name":"laptop","created_at":"2026-03-01T12:00:00Z",'
            b'"expires_at":"2026-03-02T12:00:00Z","last_used_at":"2026-03-01T12:00:00.000001Z"},'
            b'{"key_id":"0123456789abcdef","name":"\xc3\xa9","created_at":"2026-03-01T12:00:00Z",'
            b'"expires_at":null,"last_used_at":null}]}',
            id="API keys",
        ),
        pytest.param(responses.api_keys([]), b'{"keys":[]}', id="no API keys"),
        pytest.param(user_lists.users_page([], NOON, next_page=None), b'{"users":[],"next":null}', id="no users"),
        pytest.param(
            user_lists.users_page([ADA], NOON, next_page=7),
            b'{"users":[{"user_id":7,"username":"ada","email":"ada@example.com","enabled":true,'
            b'"created_datetime":"2026-03-01T12:00:00Z","updated_datetime":"2026-03-01T12:00:00Z",'
            b'"state":"active","expires_at":null,"plan":null,"metadata":{}}],"next":7}',
            id="page of users",
        ),
        pytest.param(
            responses.user(ADA, NOON),
            b'{"user_id":7,"username":"ada","email":"ada@example.com","enabled":true,'
            b'"created_datetime":"2026-03-01T12:00:00Z","updated_datetime":"2026-03-01T12:00:00Z",'
            b'"state":"active","expires_at":null,"plan":null,"metadata":{}}',
            id="user",
        ),
        pytest.param(
            reports.audit_page([attrs.evolve(ENTRY, id=AuditId(10)), ENTRY], more=True),
            b'{"entries":[{"audit_id":10,"at":"2026-03-01T12:00:00Z","actor":"admin","action":"add_api_key",'
            b'"user_id":7,"key_id":"0123456789abcdef","outcome":"done","request_id":"request-7","changes":null},'
            b'{"audit_id":9,"at":"2026-03-01T12:00:00Z","actor":"admin","action":"add_api_key",'
            b'"user_id":7,"key_id":"0123456789abcdef","outcome":"done","request_id":"request-7","changes":null}],"next":9}',
            id="page of the audit trail",
        ),
        pytest.param(
            reports.audit_page([attrs.evolve(ENTRY, user_id=None, api_key_id=None, request_id=None)], more=False),
            b'{"entries":[{"audit_id":9,"at":"2026-03-01T12:00:00Z","actor":"admin","action":"add_api_key",'
            b'"user_id":null,"key_id":null,"outcome":"done","request_id":null,"changes":null}],"next":null}',
            id="last page of the audit trail",
        ),
        pytest.param(reports.audit_page([], more=False), b'{"entries":[],"next":null}', id="no entries"),
    ],
)
def test_responses_about_users_are_not_cacheable(response: Response, body: bytes) -> None:
    assert response == Response(HTTPStatus.OK, body, (("Cache-Control", "no-store"),))


def test_http_error_response_contains_the_headers_passed_to_it() -> None:
    response = http_error_response(405, [("Allow", "POST")])

    assert response == Response(
        HTTPStatus.METHOD_NOT_ALLOWED, b'{"message":"Method Not Allowed"}', (("Allow", "POST"),)
    )


ERROR_RESPONSES: list[tuple[MlapiError, Response]] = [
    (
        InvalidFieldsError((FieldError("username", "must not be empty"), FieldError("email", "is missing"))),
        Response(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            b'{"message":"Invalid input","errors":[{"field":"username","message":"must not be empty"},'
            b'{"field":"email","message":"is missing"}]}',
        ),
    ),
    (UserExistsError(7), Response(HTTPStatus.CONFLICT, b'{"message":"User already exists","user_id":7}')),
    (UserNotFoundError(7), Response(HTTPStatus.NOT_FOUND, b'{"message":"User not found"}')),
    (
        PasswordChangedError(7),
        Response(HTTPStatus.CONFLICT, b'{"message":"The password was changed by another request, log in again"}'),
    ),
    (
        UserChangedError(7),
        Response(
            HTTPStatus.CONFLICT, b'{"message":"The user was changed by another request, check them and try again"}'
        ),
    ),
    (
        UserReferencedError(7),
        Response(HTTPStatus.CONFLICT, b'{"message":"User is referenced by other tables"}'),
    ),
    (
        ChangeRejectedError(7, "a constraint failed"),
        Response(HTTPStatus.CONFLICT, b'{"message":"The database rejects this change"}'),
    ),
    (ApiKeyNotFoundError("0123456789abcdef"), Response(HTTPStatus.NOT_FOUND, b'{"message":"Key not found"}')),
    (
        TooManyApiKeysError(1, 10),
        Response(HTTPStatus.CONFLICT, b'{"message":"Too many API keys, remove one first"}'),
    ),
    (
        OwnApiKeysDisabledError(),
        Response(
            HTTPStatus.FORBIDDEN,
            b'{"message":"Users cannot add API keys, because account.keys is false: ask a manager for one"}',
        ),
    ),
    (
        InvalidCredentialsError(),
        Response(HTTPStatus.UNAUTHORIZED, b'{"message":"Invalid credentials"}', (("WWW-Authenticate", "Bearer"),)),
    ),
    (
        InvalidTokenError(),
        Response(HTTPStatus.UNAUTHORIZED, b'{"message":"Invalid token"}', INVALID_TOKEN_CHALLENGE),
    ),
    (
        MissingCredentialError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"This needs a token or an API key: send Authorization: Bearer <token>,'
            b' or X-API-Key: <API key>"}',
            (("WWW-Authenticate", "Bearer"),),
        ),
    ),
    (
        TokenRequiredError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"This needs a token: log in with POST /token, and send Authorization: Bearer <token>"}',
            (("WWW-Authenticate", "Bearer"),),
        ),
    ),
    (
        ApiKeyNotAcceptedError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"This needs a token, and the request has an API key: log in with POST /token, and send'
            b' Authorization: Bearer <token>"}',
            INVALID_TOKEN_CHALLENGE,
        ),
    ),
    (UserDisabledError(7), Response(HTTPStatus.FORBIDDEN, b'{"message":"User is disabled"}')),
    (UserPendingError(7), Response(HTTPStatus.FORBIDDEN, b'{"message":"User is pending"}')),
    (AccessExpiredError(7), Response(HTTPStatus.FORBIDDEN, b'{"message":"Access has expired"}')),
    (
        RequestLimitReachedError(PER_MINUTE, 34, (AllowanceState(PER_MINUTE, remaining=0, reset_seconds=34),)),
        Response(
            HTTPStatus.TOO_MANY_REQUESTS,
            b'{"message":"Request limit reached: 60 per minute"}',
            (
                ("Retry-After", "34"),
                ("RateLimit-Policy", '"requests per minute";q=60;w=60'),
                ("RateLimit", '"requests per minute";r=0;t=34'),
            ),
        ),
    ),
    (
        TooManyAttemptsError(30),
        Response(
            HTTPStatus.TOO_MANY_REQUESTS,
            b'{"message":"Too many attempts, try again later"}',
            (("Retry-After", "30"),),
        ),
    ),
    (
        ServiceUnavailableError("too many requests are waiting"),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, try again"}',
            (("Retry-After", "1"),),
        ),
    ),
    (
        RepositoryUnavailableError("the disk is full", retry_after_seconds=3),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, try again"}',
            (("Retry-After", "3"),),
        ),
    ),
    (
        RepositoryUnavailableError("the connection was lost while committing", may_be_done=True),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, try again: this may have been done already"}',
            (("Retry-After", "1"),),
        ),
    ),
    (
        SearchUnavailableError("Two other searches are running: try again in a moment"),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Two other searches are running: try again in a moment"}',
            (("Retry-After", "1"),),
        ),
    ),
    (
        ConfigurationError("this is another database"),
        Response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            b'{"message":"Service unavailable, see the server log"}',
            (("Retry-After", "10"),),
        ),
    ),
    (
        UnreadableBodyError("it is not UTF-8"),
        Response(HTTPStatus.BAD_REQUEST, b'{"message":"The body is not valid JSON: it is not UTF-8"}'),
    ),
    (
        BodyTooLargeError(),
        Response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b'{"message":"The body is larger than 16384 bytes"}'),
    ),
    (
        UnsupportedMediaTypeError(),
        Response(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            b'{"message":"The Content-Type must be application/json, in UTF-8"}',
        ),
    ),
    (
        UnsupportedContentEncodingError(),
        Response(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            b'{"message":"The body is compressed: send it without Content-Encoding"}',
            (("Accept-Encoding", "identity"),),
        ),
    ),
    (
        UnsupportedGrantTypeError(),
        Response(HTTPStatus.BAD_REQUEST, b'{"message":"The grant_type must be password"}'),
    ),
    (
        UriTooLongError(),
        Response(
            HTTPStatus.REQUEST_URI_TOO_LONG,
            b'{"message":"The path is longer than 4096 characters, or the query than 4096 bytes"}',
        ),
    ),
    (
        HeadersTooLargeError(),
        Response(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            b'{"message":"There are more than 100 headers, or one is longer than 16384 bytes"}',
        ),
    ),
    (
        AdminTokenRequiredError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"This needs the admin token: send one Authorization header with Bearer <admin token>, or with'
            b' the token of a manager"}',
            (("WWW-Authenticate", "Bearer"),),
        ),
    ),
    (
        WrongAdminTokenError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"The admin token is wrong: send the value of secrets.admin_token in'
            b' Authorization: Bearer <admin token>"}',
            INVALID_TOKEN_CHALLENGE,
        ),
    ),
    (
        WrongManagerTokenError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"The manager\'s token is unknown, or it has expired: an admin can issue another one with'
            b' `mlapi managers rotate NAME`"}',
            INVALID_TOKEN_CHALLENGE,
        ),
    ),
    (
        ViewerRoleError("alice"),
        Response(
            HTTPStatus.FORBIDDEN,
            b'{"message":"Manager alice has the role viewer, which may only read: ask a manager with the role admin for'
            b' this change, or for that role"}',
        ),
    ),
    (
        LinkNotFoundError(),
        Response(HTTPStatus.NOT_FOUND, b'{"message":"Link is not valid, ask for a new one"}'),
    ),
    (
        LinkNotAllowedError(7, "disabled"),
        Response(HTTPStatus.CONFLICT, b'{"message":"user 7 is disabled: enable the user before you make a link"}'),
    ),
    (
        ManagerExistsError("alice"),
        Response(HTTPStatus.CONFLICT, b'{"message":"Manager already exists"}'),
    ),
    (
        ManagerNotFoundError("alice"),
        Response(HTTPStatus.NOT_FOUND, b'{"message":"Manager not found"}'),
    ),
    (
        UserIsNotAdminError(),
        Response(
            HTTPStatus.UNAUTHORIZED,
            b'{"message":"This needs the admin token, and the request has a user\'s token or API key: send'
            b' Authorization: Bearer <admin token>"}',
            INVALID_TOKEN_CHALLENGE,
        ),
    ),
    (
        AdminAccessDeniedError("Management is locked"),
        Response(HTTPStatus.FORBIDDEN, b'{"message":"Management is locked"}'),
    ),
]


@pytest.mark.parametrize(
    ("error", "response"), ERROR_RESPONSES, ids=[type(error).__name__ for error, _ in ERROR_RESPONSES]
)
def test_error_has_the_documented_status_and_body(error: MlapiError, response: Response) -> None:
    assert error_response(error) == response


def subclasses(error: type[MlapiError]) -> set[type[MlapiError]]:
    return {error}.union(*(subclasses(subclass) for subclass in error.__subclasses__()))


def test_every_error_has_a_status_and_is_tested() -> None:
    for module in pkgutil.walk_packages(mlapi.__path__, "mlapi."):
        importlib.import_module(module.name)  # define all subclasses

    never_sent = {MailError, *subclasses(MailError)}  # the sender of mail handles them
    raised = subclasses(MlapiError) - {MlapiError, RequestError, AccessDeniedError} - never_sent
    without_entry = raised - set(ERRORS)

    assert set(ERRORS) <= raised
    assert [error for error in without_entry if not set(ERRORS).intersection(error.__mro__)] == []
    assert {error_response(error("read-only")).status for error in without_entry} == {503}
    assert {type(error): response.status for error, response in ERROR_RESPONSES} == {
        error: entry.status for error, entry in ERRORS.items()
    }


def test_module_docstring_lists_every_error() -> None:
    named = re.findall(r"[├└]── (\w+)  ", errors.__doc__ or "", re.MULTILINE)

    assert sorted(named) == sorted(
        error.__name__
        for error in subclasses(MlapiError) - {MlapiError}
        if error.__module__.startswith("mlapi.domain.")
    )
