"""mlapi keeps the users of a machine-learning API: it registers them, lets them in and shuts them out.

Importing this reads no file, opens no database and loads neither SQLAlchemy, Starlette nor cryptography.
"""

from mlapi.application.authentication import Access, Authenticator, LoginAttempt, VerifiedLogin
from mlapi.application.guard import AsyncGuard, Guard
from mlapi.application.users import Users
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.commands import (
    Actor,
    AddApiKey,
    ChangePassword,
    Command,
    EndTokens,
    Outcome,
    RecordApiKeyUse,
    Reencrypt,
    Register,
    Rejection,
    Remove,
    RemoveApiKey,
    SetEnabled,
)
from mlapi.domain.credentials import ApiKey, ApiKeyId, ApiKeyPrincipal, IssuedToken, Principal, PrincipalId, TokenClaims
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
from mlapi.domain.ports import AttemptLimiter, AuditTrail, Clock, KeyUsage, PasswordCipher, TokenIssuer, UserRepository
from mlapi.domain.rules import PasswordPolicy, canonical_username
from mlapi.domain.users import EncryptedPassword, User, UserId, UsernameKey

__version__ = "0.1.0"

__all__ = [
    "Access",
    "Actor",
    "AddApiKey",
    "ApiKey",
    "ApiKeyId",
    "ApiKeyNotFoundError",
    "ApiKeyPrincipal",
    "AsyncGuard",
    "AttemptLimiter",
    "AuditEntry",
    "AuditId",
    "AuditTrail",
    "Authenticator",
    "ChangePassword",
    "Clock",
    "Command",
    "ConfigurationError",
    "DailyCount",
    "EncryptedPassword",
    "EndTokens",
    "FieldError",
    "Guard",
    "InvalidCredentialsError",
    "InvalidFieldsError",
    "InvalidTokenError",
    "IssuedToken",
    "KeyUsage",
    "LoginAttempt",
    "MlapiError",
    "Outcome",
    "PasswordChangedError",
    "PasswordCipher",
    "PasswordPolicy",
    "Principal",
    "PrincipalId",
    "RecordApiKeyUse",
    "Reencrypt",
    "Register",
    "Rejection",
    "Remove",
    "RemoveApiKey",
    "RepositoryUnavailableError",
    "ServiceUnavailableError",
    "SetEnabled",
    "TokenClaims",
    "TokenIssuer",
    "TooManyAttemptsError",
    "User",
    "UserDisabledError",
    "UserExistsError",
    "UserId",
    "UserNotFoundError",
    "UserRepository",
    "UsernameKey",
    "Users",
    "VerifiedLogin",
    "canonical_username",
]
