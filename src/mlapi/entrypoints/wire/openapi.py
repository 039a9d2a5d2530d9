"""What our HTTP says, as OpenAPI 3.1: one table of operations, described with what encodes and decodes them.

The statuses, headers and examples of a refusal are what `refused` answers to the error; those of a success are what
the answer's own function makes of a sample. So nothing here can say another thing than the service does.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import Any

import attrs
import msgspec

from mlapi import __version__
from mlapi.domain.audit import AuditEntry, AuditId
from mlapi.domain.credentials import ApiKey, ApiKeyId, IssuedToken
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
from mlapi.domain.rules import USERNAME_MAX_CHARS
from mlapi.domain.users import EncryptedPassword, User, UserId
from mlapi.entrypoints.wire import responses
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    BodyTooLargeError,
    UnreadableBodyError,
    UnsupportedMediaTypeError,
)
from mlapi.entrypoints.wire.queries import AUDIT_PARAMETERS, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, USERS_PARAMETERS
from mlapi.entrypoints.wire.requests import (
    TOKEN_PATH_PREFIX,
    AddApiKeyRequest,
    ChangePasswordRequest,
    LoginRequest,
    RegisterRequest,
    RequestBody,
    SetPasswordRequest,
)
from mlapi.entrypoints.wire.responses import (
    Message,
    Response,
    ResponseBody,
    UserMessage,
    error_response,
    http_error_response,
)

Schema = dict[str, Any]
"""JSON Schema 2020-12, or another part of an OpenAPI document."""


@attrs.frozen
class Callers:
    """Who may call: the security requirements, of which one is enough, and how others are refused."""

    security: tuple[Schema, ...] = ()
    refusals: tuple[type[MlapiError], ...] = ()


_BY_MANAGEMENT = (AdminTokenRequiredError, AdminAccessDeniedError)
_BY_GUARD = (InvalidTokenError, UserDisabledError)
ANYBODY = Callers()
ANYBODY_IF_OPEN = Callers(({}, {"adminToken": []}), _BY_MANAGEMENT)
MANAGERS = Callers(({"adminToken": []},), _BY_MANAGEMENT)
USERS = Callers(({"userToken": []}, {"apiKey": []}), _BY_GUARD)
USERS_WITH_TOKEN = Callers(({"userToken": []},), _BY_GUARD)

_BY_BODY = (UnreadableBodyError, BodyTooLargeError, UnsupportedMediaTypeError, InvalidFieldsError)
_BY_DATABASE = (ServiceUnavailableError, RepositoryUnavailableError, ConfigurationError)


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one path.

    ``done`` is a sample of the answer to what was done, ``shape`` what its body is encoded from: None for no body, or
    for a text. ``refusals`` are those of the operation itself: what callers, body, parameters and database add is
    known.
    """

    method: str
    path: str
    name: str
    summary: str
    tag: str
    callers: Callers
    done: Response
    shape: type[ResponseBody] | None
    text: str | None = None
    """The media type of a body that is no JSON."""
    body: type[RequestBody] | None = None
    query: tuple[str, ...] = ()
    refusals: tuple[type[MlapiError], ...] = ()
    may_be_closed: bool = False
    """Whether the path is not found where the service runs without it."""
    needs_database: bool = True
    deprecated: bool = False

    @property
    def path_parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    @property
    def all_refusals(self) -> list[type[MlapiError]]:
        """Every error that the operation can end in, once."""
        has_checked_text = bool(self.query) or not {"user_id", "permission"}.isdisjoint(self.path_parameters)
        found = (
            *self.callers.refusals,
            *(_BY_BODY if self.body else ()),
            *((InvalidFieldsError,) if has_checked_text else ()),
            *self.refusals,
            *(_BY_DATABASE if self.needs_database else ()),
        )
        return list(dict.fromkeys(found))


# --- samples, from which every example is made

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_ADA = User(
    id=UserId(1),
    username="ada",
    password=EncryptedPassword(""),
    email="ada@example.com",
    enabled=True,
    created_datetime=_NOON,
    updated_datetime=_NOON,
    token_epoch="",
)
_KEY = ApiKey(id=ApiKeyId("0123456789abcdef"), user_id=_ADA.id, name="nightly job", digest="", created_datetime=_NOON)
_ENTRY = AuditEntry(
    id=AuditId(1),
    at=_NOON,
    actor="admin",
    action="register",
    user_id=_ADA.id,
    api_key_id=None,
    outcome="done",
    request_id=None,
)
_SECRET = f"mlapi_{_KEY.id}_{'0' * 64}"

_REFUSALS: tuple[tuple[MlapiError, str], ...] = (
    (
        InvalidFieldsError((FieldError("username", "is missing"),)),
        "Fields or parameters break a rule; each is named, and no value is repeated.",
    ),
    (UserExistsError(1), "Somebody has this username, in whatever case or spelling: `user_id` is his."),
    (UserNotFoundError(2), "No user has this id."),
    (PasswordChangedError(1), "Another password was set meanwhile."),
    (ApiKeyNotFoundError(""), "No API key has this id."),
    (InvalidCredentialsError(), "No such user, or not his password."),
    (InvalidTokenError(), "The token or API key lets nobody in: forged, over, ended, or its user was removed."),
    (UserDisabledError(1), "The user is shut out."),
    (TooManyAttemptsError(30), "Too many attempts to log in."),
    (ServiceUnavailableError("overloaded"), "Too many requests are waiting."),
    (
        RepositoryUnavailableError("unreachable"),
        "The database is unavailable. `message` says if the change may have been stored.",
    ),
    (ConfigurationError(""), "The database is not the one that the service was configured for."),
    (UnreadableBodyError("it is not UTF-8"), "The body is not strict JSON in UTF-8."),
    (BodyTooLargeError(), "The body is larger than that."),
    (UnsupportedMediaTypeError(), "The body is something else than `application/json`."),
    (AdminTokenRequiredError(), "This is for managers, and an admin token is set."),
    (
        AdminAccessDeniedError("Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"),
        "This is for managers, no admin token is set, and the caller may be no program on this machine.",
    ),
)
_SAMPLES = {type(error): (error, sentence) for error, sentence in _REFUSALS}
_SHAPES: dict[type[MlapiError], type[ResponseBody]] = {
    InvalidFieldsError: responses.InvalidInput,
    UserExistsError: UserMessage,
}


# --- the operations

_USERS, _OWN, _ACCESS, _STATE = "Users", "Own account", "Access", "State"

OPERATIONS = (
    Operation(
        method="POST",
        path="/register-user",
        name="registerUser",
        summary="Register a user, who is enabled",
        tag=_USERS,
        callers=ANYBODY_IF_OPEN,
        body=RegisterRequest,
        done=responses.user_registered(_ADA),
        shape=UserMessage,
        refusals=(UserExistsError,),
    ),
    Operation(
        method="PUT",
        path="/toggle-user-permission/{user_id}/{permission}",
        name="setPermission",
        summary="Let a user in, or shut him out by his next request",
        tag=_USERS,
        callers=MANAGERS,
        done=responses.permission_updated(_ADA),
        shape=UserMessage,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="DELETE",
        path="/remove-user/{user_id}",
        name="removeUser",
        summary="Remove a user for good, with his API keys",
        tag=_USERS,
        callers=MANAGERS,
        done=responses.user_removed(_ADA),
        shape=Message,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="GET",
        path="/users",
        name="listUsers",
        summary="List users by rising id, a page at a time",
        tag=_USERS,
        callers=MANAGERS,
        query=tuple(USERS_PARAMETERS),
        done=responses.users_page([_ADA], more=False),
        shape=responses.UsersPage,
    ),
    Operation(
        method="GET",
        path="/users/{user_id}",
        name="showUser",
        summary="Show a user",
        tag=_USERS,
        callers=MANAGERS,
        done=responses.user(_ADA),
        shape=responses.UserResponse,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="PUT",
        path="/users/{user_id}/password",
        name="setPassword",
        summary="Give a user another password, which ends all of his tokens",
        tag=_USERS,
        callers=MANAGERS,
        body=SetPasswordRequest,
        done=responses.password_changed(_ADA),
        shape=None,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="DELETE",
        path="/users/{user_id}/tokens",
        name="endTokens",
        summary="End every token of a user; his API keys stay",
        tag=_USERS,
        callers=MANAGERS,
        done=responses.tokens_ended(_ADA),
        shape=UserMessage,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="GET",
        path="/users/{user_id}/keys",
        name="listApiKeys",
        summary="List the API keys of a user, the oldest first",
        tag=_USERS,
        callers=MANAGERS,
        done=responses.api_keys([_KEY]),
        shape=responses.ApiKeys,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="POST",
        path="/users/{user_id}/keys",
        name="addApiKey",
        summary="Make an API key for a user, which is shown once",
        tag=_USERS,
        callers=MANAGERS,
        body=AddApiKeyRequest,
        done=responses.api_key_added(_KEY, _SECRET),
        shape=responses.NewApiKeyResponse,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="DELETE",
        path="/keys/{key_id}",
        name="removeApiKey",
        summary="Remove an API key",
        tag=_USERS,
        callers=MANAGERS,
        done=responses.api_key_removed(_KEY),
        shape=Message,
        refusals=(ApiKeyNotFoundError,),
    ),
    Operation(
        method="POST",
        path="/token",
        name="logIn",
        summary="Log in: get a token for a name and a password",
        tag=_ACCESS,
        callers=ANYBODY,
        body=LoginRequest,
        done=responses.token_issued(IssuedToken("eyJ...", 3600)),
        shape=responses.Token,
        refusals=(InvalidCredentialsError, UserDisabledError, TooManyAttemptsError),
    ),
    Operation(
        method="GET",
        path="/token_status",
        name="checkToken",
        summary="Tell whether a token or an API key lets its user in now",
        tag=_ACCESS,
        callers=attrs.evolve(USERS, refusals=(InvalidTokenError,)),
        done=responses.token_valid(_ADA),
        shape=Message,
    ),
    Operation(
        method="GET",
        path=TOKEN_PATH_PREFIX + "{token}",
        name="checkTokenInPath",
        summary="The same, for clients that know no other way: paths are logged on their way. Not in production",
        tag=_ACCESS,
        callers=ANYBODY,
        done=responses.token_valid(_ADA),
        shape=Message,
        refusals=(InvalidTokenError,),
        may_be_closed=True,
        deprecated=True,
    ),
    Operation(
        method="GET",
        path="/users/me",
        name="showOwnUser",
        summary="Show the user whose token or API key this is",
        tag=_OWN,
        callers=USERS,
        done=responses.user(_ADA),
        shape=responses.UserResponse,
    ),
    Operation(
        method="PUT",
        path="/users/me/password",
        name="changePassword",
        summary="Change one's own password, which ends all of one's tokens",
        tag=_OWN,
        callers=USERS_WITH_TOKEN,
        body=ChangePasswordRequest,
        done=responses.password_changed(_ADA),
        shape=None,
        refusals=(InvalidCredentialsError, UserNotFoundError, PasswordChangedError, TooManyAttemptsError),
    ),
    Operation(
        method="DELETE",
        path="/users/me/tokens",
        name="endOwnTokens",
        summary="End all of one's tokens; API keys stay",
        tag=_OWN,
        callers=USERS_WITH_TOKEN,
        done=responses.tokens_ended(_ADA),
        shape=UserMessage,
        refusals=(UserNotFoundError,),
    ),
    Operation(
        method="GET",
        path="/audit",
        name="listAuditEntries",
        summary="List what was done to the users, the newest first, a page at a time",
        tag=_STATE,
        callers=MANAGERS,
        query=tuple(AUDIT_PARAMETERS),
        done=responses.audit_page([_ENTRY], more=False),
        shape=responses.AuditPage,
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="showMetrics",
        summary="Show what is counted, for Prometheus",
        tag=_STATE,
        callers=ANYBODY_IF_OPEN,
        done=Response(HTTPStatus.OK, b""),
        shape=None,
        text="text/plain",
        needs_database=False,
    ),
    Operation(
        method="GET",
        path="/health/live",
        name="isAlive",
        summary="Tell whether the process answers",
        tag=_STATE,
        callers=ANYBODY,
        done=responses.alive(),
        shape=Message,
        needs_database=False,
    ),
    Operation(
        method="GET",
        path="/health/ready",
        name="isReady",
        summary="Tell whether the database takes transactions that write",
        tag=_STATE,
        callers=ANYBODY,
        done=responses.ready(),
        shape=Message,
    ),
)

_ID: Schema = {"type": "integer", "minimum": 0}
_PATH_PARAMETERS: Mapping[str, Schema] = {
    "user_id": {"description": "Of a user.", "schema": _ID, "example": 1},
    "permission": {"description": "1 lets in, 0 shuts out.", "schema": {"type": "integer", "enum": [0, 1]}},
    "key_id": {
        "description": "Of an API key: what stands between `mlapi_` and the next `_`.",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        "example": _KEY.id,
    },
    "token": {"description": "A token or an API key.", "schema": {"type": "string", "minLength": 1}},
}
_QUERY_PARAMETERS: Mapping[str, Schema] = {
    "enabled": {
        "description": "Only those who are let in (1), or shut out (0).",
        "schema": {"type": "integer", "enum": [0, 1]},
    },
    "q": {
        "description": "Only those with this in their name or e-mail address, in whatever case or spelling.",
        "schema": {"type": "string", "format": "visible-text", "maxLength": USERNAME_MAX_CHARS},
    },
    "user_id": {"description": "Only what is about this user, whether he is still there or not.", "schema": _ID},
    "limit": {
        "description": "Of the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE},
    },
    "after": {"description": "The `next` of the page before; none for the first page.", "schema": _ID},
}
_HEADERS: Mapping[str, Schema] = {
    "Allow": {"description": "The methods that the path has.", "schema": {"type": "string"}},
    "Cache-Control": {"description": "For nobody's cache.", "schema": {"type": "string", "const": "no-store"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "What to come with.", "schema": {"type": "string", "const": "Bearer"}},
    "X-Request-Id": {"description": "The id of the request in our log and audit trail.", "schema": {"type": "string"}},
}
_OF_EVERY_ANSWER = {"Cache-Control", "X-Request-Id"}
_SECURITY_SCHEMES: Mapping[str, Schema] = {
    "adminToken": {
        "type": "http",
        "scheme": "bearer",
        "description": "`secrets.admin_token` of the configuration."
        " In development without one, programs on this machine need none; pages in a browser, this one too, then only"
        " read.",
    },
    "userToken": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "The `token` that `POST /token` gives, until it ends or its user is shut out.",
    },
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The `key` that `POST /users/{user_id}/keys` gives, until it ends or its user is shut out.",
    },
}
_ABOUT = (
    "Keeps the users of a machine-learning API: registers them, lets them in and shuts them out. "
    "Whoever is shut out is refused at his next request, with every token issued before.\n\n"
    "Bodies are JSON in UTF-8, 16 KiB at most. Bad input changes nothing and is told what is wrong."
)


@cache
def openapi() -> bytes:
    """Return the description as JSON: an OpenAPI 3.1 document. Its URLs are relative to where it is served."""
    shapes = [operation.shape for operation in OPERATIONS] + [operation.body for operation in OPERATIONS]
    (*_, schemas) = msgspec.json.schema_components(
        [*dict.fromkeys(shape for shape in shapes if shape is not None), responses.InvalidInput],
        ref_template="#/components/schemas/{name}",
    )
    document = {
        "openapi": "3.1.1",
        "info": {
            "title": "mlapi",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".", "description": "Where this description is."}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": {
            path: {operation.method.lower(): _described(operation) for operation in _operations_of(path)}
            for path in dict.fromkeys(operation.path for operation in OPERATIONS)
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": _SECURITY_SCHEMES,
            "headers": {name: {**header, "required": True} for name, header in _HEADERS.items()},
        },
    }
    return msgspec.json.encode(document)


def _operations_of(path: str) -> Iterator[Operation]:
    return (operation for operation in OPERATIONS if operation.path == path)


def _described(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": list(operation.callers.security),
        "parameters": [
            *(_parameter(name, "path", _PATH_PARAMETERS[name]) for name in operation.path_parameters),
            *(_parameter(name, "query", _QUERY_PARAMETERS[name]) for name in operation.query),
        ],
        "responses": dict(sorted(_responses(operation))),
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    if operation.deprecated:
        described["deprecated"] = True
    return described


def _parameter(name: str, place: str, about: Schema) -> Schema:
    return {"name": name, "in": place, "required": place == "path", **about}


def _responses(operation: Operation) -> Iterator[tuple[str, Schema]]:
    done = operation.done
    yield (
        str(done.status.value),
        {
            "description": "It is done.",
            "headers": _headers([done]),
            **({"content": _json(operation.shape, {"Done": done})} if operation.shape else {}),
            **({"content": {operation.text: {"schema": {"type": "string"}}}} if operation.text else {}),
            **({"links": _links(operation.shape)} if done.status == HTTPStatus.CREATED and operation.shape else {}),
        },
    )
    by_status: dict[HTTPStatus, list[type[MlapiError]]] = {}
    for error in operation.all_refusals:
        by_status.setdefault(responses.STATUS_BY_ERROR[error], []).append(error)
    for status, errors in by_status.items():
        examples = {error.__name__.removesuffix("Error"): error_response(_SAMPLES[error][0]) for error in errors}
        (shape,) = {_SHAPES.get(error, Message) for error in errors}
        yield (
            str(status.value),
            {
                "description": " ".join(_SAMPLES[error][1] for error in errors),
                "headers": _headers(examples.values()),
                "content": _json(shape, examples),
            },
        )
    other_method = http_error_response(HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", operation.method)])
    yield _failure(other_method, "The path has other methods.")
    if operation.may_be_closed:
        yield _failure(http_error_response(HTTPStatus.NOT_FOUND), "The service runs without this.")


def _failure(answer: Response, sentence: str) -> tuple[str, Schema]:
    """Describe what a framework refuses by itself."""
    name = answer.status.phrase.title().replace(" ", "")
    about = {"description": sentence, "headers": _headers([answer]), "content": _json(Message, {name: answer})}
    return str(answer.status.value), about


def _links(shape: type[ResponseBody]) -> Schema:
    """What can be done next with the ids that an answer gives."""
    given = {field.name for field in msgspec.structs.fields(shape)}
    return {
        operation.name: {
            "operationId": operation.name,
            "parameters": {
                f"path.{name}": f"$response.body#/{name}" for name in operation.path_parameters if name in given
            },
        }
        for operation in OPERATIONS
        if not given.isdisjoint(operation.path_parameters)
    }


def _headers(samples: Iterable[Response]) -> Schema:
    named = _OF_EVERY_ANSWER.union(name for answer in samples for name, _ in answer.headers)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in sorted(named)}


def _json(shape: type[msgspec.Struct], examples: Mapping[str, Response] | None = None) -> Schema:
    content: Schema = {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}
    if examples:
        content["examples"] = {name: {"value": json.loads(answer.body)} for name, answer in examples.items()}
    return {"application/json": content}
