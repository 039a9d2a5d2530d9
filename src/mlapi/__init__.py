"""mlapi manages the users of a machine-learning API: it registers, authenticates, enables and disables them.

These are the names that an application needs. Adapters also need the commands and entities in `mlapi.domain`.

Importing this module reads no file, opens no database, and loads neither SQLAlchemy, Starlette nor cryptography.
"""

from typing import TYPE_CHECKING

from mlapi.application.admissions import Admission
from mlapi.application.guard import AsyncGuard, Guard
from mlapi.domain.actors import Actor
from mlapi.domain.audit import AuditEntry
from mlapi.domain.audit_trail import AuditTrail
from mlapi.domain.commands import Command, Outcome
from mlapi.domain.credentials import ApiKey, ApiKeyId, IssuedToken
from mlapi.domain.errors import (
    AccessExpiredError,
    ApiKeyNotFoundError,
    ChangeRejectedError,
    ConfigurationError,
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
    UserPendingError,
    UserReferencedError,
)
from mlapi.domain.expiry import Extension
from mlapi.domain.plans import RequestLimitReachedError
from mlapi.domain.ports import AttemptLimiter, Clock, PasswordCipher, TokenIssuer, UserRepository
from mlapi.domain.rules import PasswordPolicy, UserFilter
from mlapi.domain.storage import Storage
from mlapi.domain.users import User, UserId

if TYPE_CHECKING:
    from mlapi.application.authentication import Access, Authenticator
    from mlapi.application.users import Users

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AccessExpiredError",
    "Actor",
    "Admission",
    "ApiKey",
    "ApiKeyId",
    "ApiKeyNotFoundError",
    "AsyncGuard",
    "AttemptLimiter",
    "AuditEntry",
    "AuditTrail",
    "Authenticator",
    "ChangeRejectedError",
    "Clock",
    "Command",
    "ConfigurationError",
    "Extension",
    "Guard",
    "InvalidCredentialsError",
    "InvalidFieldsError",
    "InvalidTokenError",
    "IssuedToken",
    "MlapiError",
    "Outcome",
    "PasswordChangedError",
    "PasswordCipher",
    "PasswordPolicy",
    "RepositoryUnavailableError",
    "RequestLimitReachedError",
    "ServiceUnavailableError",
    "Storage",
    "TokenIssuer",
    "TooManyAttemptsError",
    "User",
    "UserDisabledError",
    "UserExistsError",
    "UserFilter",
    "UserId",
    "UserNotFoundError",
    "UserPendingError",
    "UserReferencedError",
    "UserRepository",
    "Users",
]


def __getattr__(name: str) -> object:
    """Import the names that need asyncio on first use, because a synchronous guard does not need asyncio."""
    if name in {"Access", "Authenticator"}:
        from mlapi.application import authentication  # noqa: PLC0415

        return getattr(authentication, name)
    if name == "Users":
        from mlapi.application.users import Users  # noqa: PLC0415

        return Users
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
