"""The table of operations: method, path, callers, request, responses and summary of every endpoint.

The routes, the public paths in `AdminPolicy` and the OpenAPI description are generated from this table. To add an
endpoint, add an entry here and a handler with the same name in `mlapi.entrypoints.http.handlers`.
"""

import re

import attrs
import msgspec

from mlapi.domain.credentials import ACCESS_ERRORS
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    InvalidCredentialsError,
    InvalidFieldsError,
    InvalidTokenError,
    MlapiError,
    PasswordChangedError,
    RepositoryUnavailableError,
    SearchUnavailableError,
    ServiceUnavailableError,
    TooManyAttemptsError,
    UserExistsError,
    UserNotFoundError,
)
from mlapi.entrypoints.wire import examples, responses
from mlapi.entrypoints.wire.callers import (
    ADMINS,
    ANYONE,
    ANYONE_IF_METRICS_ARE_OPEN,
    ANYONE_IF_REGISTRATION_IS_OPEN,
    USERS,
    USERS_EVEN_DISABLED,
    USERS_WITH_TOKEN,
    Callers,
)
from mlapi.entrypoints.wire.errors import (
    BodyTooLargeError,
    HeadersTooLargeError,
    UnreadableBodyError,
    UnsupportedContentEncodingError,
    UnsupportedGrantTypeError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)
from mlapi.entrypoints.wire.queries import AUDIT_PARAMETERS, USERS_PARAMETERS
from mlapi.entrypoints.wire.requests import (
    TOKEN_PATH_PREFIX,
    AddApiKeyRequest,
    ChangePasswordRequest,
    LoginForm,
    LoginRequest,
    RegisterRequest,
    RequestBody,
    SetPasswordRequest,
)
from mlapi.entrypoints.wire.responses import Message, Response, ResponseBody, UserMessage

_HEAD_ERRORS = (UriTooLongError, HeadersTooLargeError)
_BODY_ERRORS = (
    UnreadableBodyError,
    BodyTooLargeError,
    UnsupportedMediaTypeError,
    UnsupportedContentEncodingError,
    InvalidFieldsError,
)
_DATABASE_ERRORS = (ServiceUnavailableError, RepositoryUnavailableError, ConfigurationError)


@attrs.frozen
class Form:
    """The types of a form and of the response to it, and an example of the response."""

    request: type[RequestBody]
    success: Response
    response: type[ResponseBody]


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        method: the HTTP method.
        path: the path, with parameters as ``{name}``, or ``{name:path}`` if they may contain slashes.
        name: the name of the handler, and of the endpoint in the metrics.
        operation_id: the name of the operation in the OpenAPI description.
        summary: an imperative sentence for API users.
        tag: the group of the operation in the OpenAPI description.
        callers: the clients that may call it.
        request: the type of the JSON body of the request, or None if there is no body.
        form: the type of a form that the operation accepts as well as JSON, with an example of the response.
        query: the names of the query parameters.
        success: an example of the response.
        response: the type of the JSON body, or None if the body is empty or not JSON.
        errors: the errors that are specific to the operation. `all_errors` adds those for access, the body, parameters
            and the database.
        may_be_disabled: whether a setting can disable the operation. Its path then responds with 404.
        needs_database: whether the operation fails if the database is unavailable.
        deprecated: whether clients should use another operation instead.
        cross_origin: whether browsers may call it from pages in ``http.cors_origins``. Never true for management.
    """

    method: str
    path: str
    name: str
    operation_id: str
    summary: str
    tag: str
    callers: Callers
    request: type[RequestBody] | None = None
    form: Form | None = None
    query: tuple[str, ...] = ()
    success: Response
    response: type[ResponseBody] | None = None
    errors: tuple[type[MlapiError], ...] = ()
    may_be_disabled: bool = False
    needs_database: bool = True
    deprecated: bool = False
    cross_origin: bool = False

    @property
    def openapi_path(self) -> str:
        return re.sub(r":\w+}", "}", self.path)

    @property
    def body_types(self) -> list[type[msgspec.Struct]]:
        """The types of its request and response bodies."""
        forms = () if self.form is None else (self.form.request, self.form.response)
        return [body_type for body_type in (self.response, self.request, *forms) if body_type is not None]

    @property
    def path_parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.openapi_path)

    @property
    def path_pattern(self) -> str:
        """A regular expression that matches the paths of this operation."""
        parts = re.split(r"({\w+(?::path)?})", self.path)
        return "".join(
            (".*" if part.endswith(":path}") else "[^/]+") if part.startswith("{") else re.escape(part)
            for part in parts
        )

    @property
    def all_errors(self) -> list[type[MlapiError]]:
        """Every error that the operation can return, without duplicates."""
        has_validated_text = bool(self.query) or not {"user_id", "permission"}.isdisjoint(self.path_parameters)
        errors = (
            *self.callers.errors,
            *(_BODY_ERRORS if self.request else ()),
            *((InvalidFieldsError,) if has_validated_text else ()),
            *self.errors,
            *(_DATABASE_ERRORS if self.needs_database else ()),
            *_HEAD_ERRORS,
        )
        return list(dict.fromkeys(errors))


_USERS, _OWN_ACCOUNT, _ACCESS, _STATE = "Users", "Own account", "Access", "State"

# Routes are in the same order, and the first match wins, so /users/me comes before /users/{user_id}.
OPERATIONS = (
    Operation(
        method="PUT",
        path="/toggle-user-permission/{user_id}/{permission}",
        name="toggle_user_permission",
        operation_id="setPermission",
        summary="Enable or disable a user, effective from their next request",
        tag=_USERS,
        callers=ADMINS,
        success=responses.permission_updated(examples.USER),
        response=UserMessage,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="POST",
        path="/register-user",
        name="register_user",
        operation_id="registerUser",
        summary="Register a user, who is enabled immediately",
        tag=_USERS,
        callers=ANYONE_IF_REGISTRATION_IS_OPEN,
        cross_origin=True,
        request=RegisterRequest,
        success=responses.user_registered(examples.USER),
        response=UserMessage,
        errors=(UserExistsError, TooManyAttemptsError),
    ),
    Operation(
        method="DELETE",
        path="/remove-user/{user_id}",
        name="remove_user",
        operation_id="removeUser",
        summary="Permanently remove a user and their API keys",
        tag=_USERS,
        callers=ADMINS,
        success=responses.user_removed(examples.USER),
        response=Message,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="POST",
        path="/token",
        name="token",
        operation_id="logIn",
        summary="Log in: get a token for a username and password",
        tag=_ACCESS,
        callers=ANYONE,
        cross_origin=True,
        request=LoginRequest,
        form=Form(LoginForm, responses.oauth_token_issued(examples.TOKEN), responses.OAuthToken),
        success=responses.token_issued(examples.TOKEN),
        response=responses.Token,
        errors=(InvalidCredentialsError, *ACCESS_ERRORS, TooManyAttemptsError, UnsupportedGrantTypeError),
    ),
    Operation(
        method="GET",
        path="/token_status",
        name="token_status",
        operation_id="checkToken",
        summary="Check whether a token or API key is valid and its user is enabled",
        tag=_ACCESS,
        callers=USERS_EVEN_DISABLED,
        cross_origin=True,
        success=responses.token_valid(examples.USER),
        response=Message,
    ),
    Operation(
        method="GET",
        path=TOKEN_PATH_PREFIX + "{token:path}",
        name="token_status_of_path",
        operation_id="checkTokenInPath",
        summary="Check a token in the path, for old clients. Disabled in production, because proxies log paths",
        tag=_ACCESS,
        callers=ANYONE,
        cross_origin=True,
        success=responses.token_valid(examples.USER),
        response=Message,
        errors=(InvalidTokenError,),
        may_be_disabled=True,
        deprecated=True,
    ),
    Operation(
        method="GET",
        path="/users",
        name="list_users",
        operation_id="listUsers",
        summary="List users in ascending order of id, one page at a time",
        tag=_USERS,
        callers=ADMINS,
        query=tuple(USERS_PARAMETERS),
        errors=(SearchUnavailableError,),
        success=responses.users_page([examples.USER], next_page=None),
        response=responses.UsersPage,
    ),
    Operation(
        method="GET",
        path="/users/me",
        name="show_own_user",
        operation_id="showOwnUser",
        summary="Get the user that the token or API key belongs to",
        tag=_OWN_ACCOUNT,
        callers=USERS,
        cross_origin=True,
        success=responses.user(examples.USER),
        response=responses.UserResponse,
    ),
    Operation(
        method="GET",
        path="/users/{user_id}",
        name="show_user",
        operation_id="showUser",
        summary="Get a user",
        tag=_USERS,
        callers=ADMINS,
        success=responses.user(examples.USER),
        response=responses.UserResponse,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="PUT",
        path="/users/me/password",
        name="change_password",
        operation_id="changePassword",
        summary="Change your own password, which revokes all of your tokens",
        tag=_OWN_ACCOUNT,
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        request=ChangePasswordRequest,
        success=responses.password_changed(examples.USER),
        errors=(InvalidCredentialsError, UserNotFoundError, PasswordChangedError, TooManyAttemptsError),
    ),
    Operation(
        method="DELETE",
        path="/users/me/tokens",
        name="end_own_tokens",
        operation_id="endOwnTokens",
        summary="Revoke all of your own tokens. API keys stay valid",
        tag=_OWN_ACCOUNT,
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        success=responses.tokens_ended(examples.USER),
        response=UserMessage,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="PUT",
        path="/users/{user_id}/password",
        name="set_password",
        operation_id="setPassword",
        summary="Set a user's password, which revokes all of their tokens",
        tag=_USERS,
        callers=ADMINS,
        request=SetPasswordRequest,
        success=responses.password_changed(examples.USER),
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="DELETE",
        path="/users/{user_id}/tokens",
        name="end_tokens",
        operation_id="endTokens",
        summary="Revoke all tokens of a user. API keys stay valid",
        tag=_USERS,
        callers=ADMINS,
        success=responses.tokens_ended(examples.USER),
        response=UserMessage,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="GET",
        path="/users/{user_id}/keys",
        name="api_keys",
        operation_id="listApiKeys",
        summary="List the API keys of a user, oldest first",
        tag=_USERS,
        callers=ADMINS,
        success=responses.api_keys([examples.API_KEY]),
        response=responses.ApiKeys,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="POST",
        path="/users/{user_id}/keys",
        name="add_api_key",
        operation_id="addApiKey",
        summary="Create an API key for a user. Its secret is returned only once",
        tag=_USERS,
        callers=ADMINS,
        request=AddApiKeyRequest,
        success=responses.api_key_added(examples.API_KEY, examples.API_KEY_SECRET),
        response=responses.NewApiKeyResponse,
        errors=(UserNotFoundError,),
    ),
    Operation(
        method="DELETE",
        path="/keys/{key_id}",
        name="remove_api_key",
        operation_id="removeApiKey",
        summary="Remove an API key",
        tag=_USERS,
        callers=ADMINS,
        success=responses.api_key_removed(examples.API_KEY),
        response=Message,
        errors=(ApiKeyNotFoundError,),
    ),
    Operation(
        method="GET",
        path="/audit",
        name="audit",
        operation_id="listAuditEntries",
        summary="List the changes to users, newest first, one page at a time",
        tag=_STATE,
        callers=ADMINS,
        query=tuple(AUDIT_PARAMETERS),
        errors=(SearchUnavailableError,),
        success=responses.audit_page([examples.AUDIT_ENTRY], more=False),
        response=responses.AuditPage,
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="show_metrics",
        operation_id="showMetrics",
        summary="Get the metrics in Prometheus' text format",
        tag=_STATE,
        callers=ANYONE_IF_METRICS_ARE_OPEN,
        success=responses.metrics(b""),
        needs_database=False,
    ),
    Operation(
        method="GET",
        path="/health/live",
        name="live",
        operation_id="isAlive",
        summary="Check whether the process responds",
        tag=_STATE,
        callers=ANYONE,
        success=responses.alive(),
        response=Message,
        needs_database=False,
    ),
    Operation(
        method="GET",
        path="/health/ready",
        name="ready",
        operation_id="isReady",
        summary="Check whether the database accepts writes",
        tag=_STATE,
        callers=ANYONE,
        success=responses.ready(),
        response=Message,
    ),
)
