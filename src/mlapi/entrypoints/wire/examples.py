"""Example values for the OpenAPI description."""

from datetime import UTC, datetime

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
from mlapi.domain.users import EncryptedPassword, User, UserId
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    BodyTooLargeError,
    UnreadableBodyError,
    UnsupportedMediaTypeError,
)

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
USER = User(
    id=UserId(1),
    username="ada",
    password=EncryptedPassword(""),
    email="ada@example.com",
    enabled=True,
    created_datetime=_NOON,
    updated_datetime=_NOON,
    token_epoch="",
)
API_KEY = ApiKey(
    id=ApiKeyId("0123456789abcdef"), user_id=USER.id, name="nightly job", digest="", created_datetime=_NOON
)
API_KEY_SECRET = f"mlapi_{API_KEY.id}_{'0' * 64}"
TOKEN = IssuedToken("eyJ...", 3600)
AUDIT_ENTRY = AuditEntry(
    id=AuditId(1),
    at=_NOON,
    actor="admin",
    action="register",
    user_id=USER.id,
    api_key_id=None,
    outcome="done",
    request_id=None,
)

_ERRORS: tuple[tuple[MlapiError, str], ...] = (
    (
        InvalidFieldsError((FieldError("username", "is missing"),)),
        "One or more fields or parameters are invalid. `errors` lists all of them, without repeating their values.",
    ),
    (
        UserExistsError(1),
        "The username is taken, possibly in another case or spelling. `user_id` is the id of that user.",
    ),
    (UserNotFoundError(2), "The user does not exist."),
    (PasswordChangedError(1), "The password was changed by another request in the meantime."),
    (ApiKeyNotFoundError(""), "The API key does not exist."),
    (InvalidCredentialsError(), "The user does not exist, or the password is wrong."),
    (InvalidTokenError(), "The token or API key is forged, expired or revoked, or its user was removed."),
    (UserDisabledError(1), "The user is disabled."),
    (TooManyAttemptsError(30), "Too many login attempts. Wait for as long as `Retry-After` says."),
    (ServiceUnavailableError("overloaded"), "Too many requests are waiting."),
    (
        RepositoryUnavailableError("unavailable"),
        "The database is unavailable. `message` says if the change may have been applied nevertheless.",
    ),
    (ConfigurationError(""), "The service is connected to another database than configured."),
    (UnreadableBodyError("it is not UTF-8"), "The body is not strict JSON in UTF-8."),
    (BodyTooLargeError(), "The body is too large."),
    (UnsupportedMediaTypeError(), "The Content-Type is not `application/json`."),
    (AdminTokenRequiredError(), "This operation needs the admin token."),
    (
        AdminAccessDeniedError("Management is locked: set secrets.admin_token (MLAPI_SECRETS__ADMIN_TOKEN)"),
        "No admin token is configured, so only programs on the same machine may manage users, or none at all.",
    ),
)
ERRORS = {type(error): (error, description) for error, description in _ERRORS}
"""For each error an example, and a description for API users. A test checks that it is complete."""
