"""mlapi keeps the users of a machine-learning API: it registers them, lets them in and shuts them out.

Importing this reads no file, opens no database and loads neither SQLAlchemy, Starlette nor cryptography.
"""

from mlapi.access import Access, AsyncGuard, Guard, LogIn, LogIns, Proven
from mlapi.domain.audit import AuditEntry, AuditId, DailyCount
from mlapi.domain.changes import (
    AddApiKey,
    Cause,
    Change,
    ChangePassword,
    EndTokens,
    Outcome,
    RecordApiKeyUse,
    Reencrypt,
    Refusal,
    Register,
    Remove,
    RemoveApiKey,
    SetEnabled,
)
from mlapi.domain.credentials import ApiKey, ApiKeyHolder, ApiKeyId, Holder, IssuedToken, Subject, TokenClaims
from mlapi.domain.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    FieldProblem,
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
from mlapi.domain.model import (
    EncryptedPassword,
    PasswordPolicy,
    User,
    UserId,
    UsernameKey,
    canonical_username,
)
from mlapi.domain.ports import AttemptLimiter, AuditTrail, Clock, KeyUses, PasswordCipher, TokenIssuer, UserRepository
from mlapi.service import Users

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AddApiKey",
    "ApiKey",
    "ApiKeyHolder",
    "ApiKeyId",
    "ApiKeyNotFoundError",
    "AsyncGuard",
    "AttemptLimiter",
    "AuditEntry",
    "AuditId",
    "AuditTrail",
    "Cause",
    "Change",
    "ChangePassword",
    "Clock",
    "ConfigurationError",
    "DailyCount",
    "EncryptedPassword",
    "EndTokens",
    "FieldProblem",
    "Guard",
    "Holder",
    "InvalidCredentialsError",
    "InvalidFieldsError",
    "InvalidTokenError",
    "IssuedToken",
    "KeyUses",
    "LogIn",
    "LogIns",
    "MlapiError",
    "Outcome",
    "PasswordChangedError",
    "PasswordCipher",
    "PasswordPolicy",
    "Proven",
    "RecordApiKeyUse",
    "Reencrypt",
    "Refusal",
    "Register",
    "Remove",
    "RemoveApiKey",
    "RepositoryUnavailableError",
    "SetEnabled",
    "Subject",
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
    "canonical_username",
]
