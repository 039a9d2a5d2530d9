"""Operations for users and their own account."""

from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ChangeRejectedError,
    InvalidCredentialsError,
    PasswordChangedError,
    TooManyApiKeysError,
    TooManyAttemptsError,
    UserNotFoundError,
)
from mlapi.entrypoints.wire import examples, reports, responses
from mlapi.entrypoints.wire.callers import (
    USERS,
    USERS_WITH_TOKEN,
)
from mlapi.entrypoints.wire.errors import OwnApiKeysDisabledError
from mlapi.entrypoints.wire.operation import Operation
from mlapi.entrypoints.wire.queries import (
    DAYS_PARAMETERS,
)
from mlapi.entrypoints.wire.requests import (
    AddApiKeyRequest,
    ChangePasswordRequest,
)
from mlapi.entrypoints.wire.responses import Message, UserMessage

OWN_ACCOUNT_OPERATIONS = (
    Operation(
        method="GET",
        path="/users/me",
        name="show_own_user",
        operation_id="showOwnUser",
        summary="Get the user that the token or API key belongs to",
        tag="Own account",
        callers=USERS,
        cross_origin=True,
        success=responses.own_user(examples.USER, examples.NOON),
        response=responses.OwnUserResponse,
    ),
    Operation(
        method="PUT",
        path="/users/me/password",
        name="change_password",
        operation_id="changePassword",
        summary="Change your own password, which revokes all of your tokens",
        tag="Own account",
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        request=ChangePasswordRequest,
        success=responses.password_changed(examples.USER),
        errors=(
            InvalidCredentialsError,
            UserNotFoundError,
            PasswordChangedError,
            ChangeRejectedError,
            TooManyAttemptsError,
        ),
    ),
    Operation(
        method="DELETE",
        path="/users/me/tokens",
        name="end_own_tokens",
        operation_id="endOwnTokens",
        summary="Revoke all of your own tokens. API keys stay valid",
        tag="Own account",
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        success=responses.tokens_ended(examples.USER),
        response=UserMessage,
        errors=(UserNotFoundError, ChangeRejectedError),
    ),
    Operation(
        method="GET",
        path="/users/me/usage",
        name="own_usage",
        operation_id="listOwnUsage",
        summary="List your own requests and units per day",
        tag="Own account",
        callers=USERS,
        cross_origin=True,
        query=tuple(DAYS_PARAMETERS),
        success=reports.user_usage([examples.USAGE], examples.USAGE.seen_datetime),
        response=reports.UserUsage,
    ),
    Operation(
        method="GET",
        path="/users/me/keys",
        name="own_api_keys",
        operation_id="listOwnApiKeys",
        summary="List your own API keys, oldest first",
        tag="Own account",
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        success=responses.api_keys([examples.API_KEY]),
        response=responses.ApiKeys,
    ),
    Operation(
        method="POST",
        path="/users/me/keys",
        name="add_own_api_key",
        operation_id="addOwnApiKey",
        summary="Create an API key for yourself. Its secret is returned only once",
        tag="Own account",
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        request=AddApiKeyRequest,
        success=responses.api_key_added(examples.API_KEY, examples.API_KEY_SECRET),
        response=responses.NewApiKeyResponse,
        errors=(OwnApiKeysDisabledError, TooManyApiKeysError, UserNotFoundError, ChangeRejectedError),
    ),
    Operation(
        method="DELETE",
        path="/users/me/keys/{key_id}",
        name="remove_own_api_key",
        operation_id="removeOwnApiKey",
        summary="Remove one of your own API keys",
        tag="Own account",
        callers=USERS_WITH_TOKEN,
        cross_origin=True,
        success=responses.api_key_removed(examples.API_KEY),
        response=Message,
        errors=(ApiKeyNotFoundError, ChangeRejectedError),
    ),
)
