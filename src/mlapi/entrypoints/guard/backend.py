"""A guard as a backend for Starlette's ``AuthenticationMiddleware``."""

from typing import Any

from starlette import responses as starlette_responses
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError
from starlette.requests import HTTPConnection

from mlapi.application.guard import AsyncGuard
from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.guard.admissions import admit_request
from mlapi.entrypoints.http.middleware import log_outage, starlette_response
from mlapi.entrypoints.wire.error_responses import error_response
from mlapi.entrypoints.wire.errors import MissingCredentialError

AUTHENTICATED = AuthCredentials(["authenticated"])


class GuardError(AuthenticationError):
    """The error that `GuardBackend` raises. ``cause`` is the guard's own error."""

    def __init__(self, cause: MlapiError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GuardBackend(AuthenticationBackend):
    """A guard as a backend for Starlette's ``AuthenticationMiddleware``.

    Requests without a credential pass as unauthenticated; protect routes with ``@requires``. Add `AdmissionMiddleware`,
    which completes the responses.

    >>> Middleware(AdmissionMiddleware)  # doctest: +SKIP
    >>> Middleware(AuthenticationMiddleware, backend=GuardBackend(guard), on_error=handle_guard_error)  # doctest: +SKIP

    Args:
        guard: checks the credentials.
    """

    def __init__(self, guard: AsyncGuard) -> None:
        self._guard = guard

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, Any] | None:
        """Return the user, or None if the request has no credential.

        Raises:
            GuardError: if the guard rejects the credential.
        """
        try:
            return AUTHENTICATED, (await admit_request(conn, self._guard)).user
        except MissingCredentialError:
            return None
        except MlapiError as error:
            raise GuardError(error) from None


def handle_guard_error(_conn: HTTPConnection, error: AuthenticationError) -> starlette_responses.Response:
    """Return the same error response as `GuardMiddleware`. Pass it to ``AuthenticationMiddleware`` as ``on_error``."""
    assert isinstance(error, GuardError)  # noqa: S101 - `GuardBackend` raises no other error
    log_outage("guard", error.cause)
    return starlette_response(error_response(error.cause))
