"""Access rules for operations: which credential they need, and the errors if it is missing."""

from typing import Any, Literal

import attrs

from mlapi.domain.credentials import AUTHENTICATION_ERRORS
from mlapi.domain.errors import InvalidTokenError, MlapiError
from mlapi.entrypoints.wire.errors import (
    AdminAccessDeniedError,
    AdminTokenRequiredError,
    MissingCredentialError,
    UserIsNotAdminError,
    WrongAdminTokenError,
)

SecurityRequirement = dict[str, list[Any]]
"""An OpenAPI security requirement: the name of a security scheme. It is empty if no credential is needed."""


@attrs.frozen(kw_only=True)
class Callers:
    """The clients that may call an operation.

    Attributes:
        security: alternative OpenAPI security requirements. Empty if no credential is needed.
        errors: the errors that all other clients receive.
        needs_admin: whether the request needs admin access.
        open_if: the flag of `AdminPolicy` that opens the operation to everyone.
    """

    security: tuple[SecurityRequirement, ...] = ()
    errors: tuple[type[MlapiError], ...] = ()
    needs_admin: bool = False
    open_if: Literal["registration_open", "metrics_open"] | None = None


_ADMIN_ERRORS = (AdminTokenRequiredError, WrongAdminTokenError, UserIsNotAdminError, AdminAccessDeniedError)
_OPTIONAL_ADMIN_TOKEN: tuple[SecurityRequirement, ...] = ({}, {"adminToken": []})
ANYONE = Callers()
ANYONE_IF_REGISTRATION_IS_OPEN = Callers(
    security=_OPTIONAL_ADMIN_TOKEN, errors=_ADMIN_ERRORS, needs_admin=True, open_if="registration_open"
)
ANYONE_IF_METRICS_ARE_OPEN = Callers(
    security=_OPTIONAL_ADMIN_TOKEN, errors=_ADMIN_ERRORS, needs_admin=True, open_if="metrics_open"
)
ADMINS = Callers(security=({"adminToken": []},), errors=_ADMIN_ERRORS, needs_admin=True)
USERS = Callers(security=({"userToken": []}, {"apiKey": []}), errors=(MissingCredentialError, *AUTHENTICATION_ERRORS))
USERS_EVEN_DISABLED = attrs.evolve(USERS, errors=(InvalidTokenError,))
USERS_WITH_TOKEN = attrs.evolve(USERS, security=({"userToken": []},))
