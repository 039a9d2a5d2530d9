"""The operations that the legacy app has too. Their paths, methods, status codes and messages never change."""

from mlapi.domain.credentials import ACCESS_ERRORS
from mlapi.domain.errors import (
    ChangeRejectedError,
    InvalidCredentialsError,
    InvalidTokenError,
    TooManyAttemptsError,
    UserExistsError,
    UserNotFoundError,
    UserReferencedError,
)
from mlapi.entrypoints.wire import examples, responses
from mlapi.entrypoints.wire.callers import ADMINS, ANYONE, ANYONE_IF_REGISTRATION_IS_OPEN, USERS_EVEN_DISABLED
from mlapi.entrypoints.wire.errors import UnsupportedGrantTypeError
from mlapi.entrypoints.wire.operation import Form, Operation
from mlapi.entrypoints.wire.requests import TOKEN_PATH_PREFIX, LoginForm, LoginRequest, ManagedRegisterRequest
from mlapi.entrypoints.wire.responses import Message, UserMessage

LEGACY_OPERATIONS = (
    Operation(
        method="PUT",
        path="/toggle-user-permission/{user_id}/{permission}",
        name="toggle_user_permission",
        operation_id="setPermission",
        summary="Enable or disable a user, effective from their next request",
        tag="Users",
        callers=ADMINS,
        success=responses.permission_updated(examples.USER),
        response=UserMessage,
        errors=(UserNotFoundError, ChangeRejectedError),
    ),
    Operation(
        method="POST",
        path="/register-user",
        name="register_user",
        operation_id="registerUser",
        summary="Register a user, who is enabled immediately, unless addresses are verified or managers approve users",
        tag="Users",
        callers=ANYONE_IF_REGISTRATION_IS_OPEN,
        cross_origin=True,
        request=ManagedRegisterRequest,
        success=responses.user_registered(examples.USER),
        response=responses.Registered,
        errors=(UserExistsError, ChangeRejectedError, TooManyAttemptsError),
    ),
    Operation(
        method="DELETE",
        path="/remove-user/{user_id}",
        name="remove_user",
        operation_id="removeUser",
        summary="Permanently remove a user and their API keys",
        tag="Users",
        callers=ADMINS,
        success=responses.user_removed(examples.USER),
        response=Message,
        errors=(UserNotFoundError, UserReferencedError, ChangeRejectedError),
    ),
    Operation(
        method="POST",
        path="/token",
        name="token",
        operation_id="logIn",
        summary="Log in: get a token for a username and password",
        tag="Access",
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
        tag="Access",
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
        tag="Access",
        callers=ANYONE,
        cross_origin=True,
        success=responses.token_valid(examples.USER),
        response=Message,
        errors=(InvalidTokenError,),
        may_be_disabled=True,
        deprecated=True,
    ),
)
