"""Access rules for operations: which credential they need, and the errors if it is missing."""

from typing import Any, Literal

import attrs

from mlapi.domain.credentials import AUTHENTICATION_ERRORS
from mlapi.domain.errors import InvalidTokenError, MlapiError
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    ApiKeyNotAcceptedError,
    MissingCredentialError,
    TokenRequiredError,
    UserIsNotAdminError,
    ViewerRoleError,
    WrongAdminTokenError,
    WrongManagerTokenError,
)

SecurityRequirement = dict[str, list[Any]]
"""An OpenAPI security requirement: the name of a security scheme. It is empty if no credential is needed."""


@attrs.frozen(kw_only=True)
class Callers:
    """The clients that may call an operation.

    Attributes:
        security: alternative OpenAPI security requirements. Empty if no credential is needed. In local mode, and if
            the operation is open to everyone, the admin token is optional.
        errors: the errors that all other clients receive.
        needs_admin: whether the request needs the admin token or the token of a manager.
        admits_viewers: whether managers with the role ``viewer`` may call it. Only for operations that change nothing.
        open_if: the flag of `AdminPolicy` that opens the operation to everyone.
    """

    security: tuple[SecurityRequirement, ...] = ()
    errors: tuple[type[MlapiError], ...] = ()
    needs_admin: bool = False
    admits_viewers: bool = False
    open_if: Literal["registration_open", "metrics_open"] | None = None


_MANAGER_ERRORS = (
    AdminTokenRequiredError,
    WrongAdminTokenError,
    WrongManagerTokenError,
    UserIsNotAdminError,
    AdminAccessDeniedError,
)
ANYONE = Callers()
ADMINS = Callers(security=({"adminToken": []},), errors=(*_MANAGER_ERRORS, ViewerRoleError), needs_admin=True)
VIEWERS = attrs.evolve(ADMINS, errors=_MANAGER_ERRORS, admits_viewers=True)
ANYONE_IF_REGISTRATION_IS_OPEN = attrs.evolve(ADMINS, open_if="registration_open")
ANYONE_IF_METRICS_ARE_OPEN = attrs.evolve(VIEWERS, open_if="metrics_open")
_USER_TOKEN: tuple[SecurityRequirement, ...] = ({"userToken": []}, {"userLogin": []})
_API_KEY: tuple[SecurityRequirement, ...] = ({"apiKey": []}, {"apiKeyHeader": []})
USERS = Callers(security=(*_USER_TOKEN, *_API_KEY), errors=(MissingCredentialError, *AUTHENTICATION_ERRORS))
USERS_EVEN_DISABLED = attrs.evolve(USERS, errors=(InvalidTokenError,))
USERS_WITH_TOKEN = Callers(
    security=_USER_TOKEN, errors=(TokenRequiredError, ApiKeyNotAcceptedError, *AUTHENTICATION_ERRORS)
)
