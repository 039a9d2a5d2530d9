"""mlapi keeps the users of a machine-learning API: it registers them, lets them in and shuts them out.

Importing this reads no file, opens no database and loads neither SQLAlchemy, Starlette nor cryptography.
"""

from mlapi.domain.changes import Change, Outcome, Refusal, Register, Remove, SetEnabled
from mlapi.domain.errors import (
    ConfigurationError,
    FieldProblem,
    InvalidFieldsError,
    MlapiError,
    RepositoryUnavailableError,
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
from mlapi.domain.ports import Clock, PasswordCipher, UserRepository
from mlapi.service import Users

__version__ = "0.1.0"

__all__ = [
    "Change",
    "Clock",
    "ConfigurationError",
    "EncryptedPassword",
    "FieldProblem",
    "InvalidFieldsError",
    "MlapiError",
    "Outcome",
    "PasswordCipher",
    "PasswordPolicy",
    "Refusal",
    "Register",
    "Remove",
    "RepositoryUnavailableError",
    "SetEnabled",
    "User",
    "UserExistsError",
    "UserId",
    "UserNotFoundError",
    "UserRepository",
    "UsernameKey",
    "Users",
    "canonical_username",
]
