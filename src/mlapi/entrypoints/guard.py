"""ASGI guards for a model's API, which let only enabled users through.

`GuardMiddleware` protects a whole application. `GuardBackend` plugs into Starlette's ``AuthenticationMiddleware``.
Test your routes with `mlapi.testing.assert_all_routes_guarded`.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from starlette import responses as starlette_responses
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from mlapi.application.guard import AsyncGuard, Guard
from mlapi.bootstrap import async_guard, open_guard
from mlapi.config import load_settings
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError
from mlapi.entrypoints.http.middleware import (
    RejectAmbiguousFraming,
    StartupErrorMiddleware,
    log_outage,
    send_response,
    starlette_response,
)
from mlapi.entrypoints.wire.error_responses import error_response
from mlapi.entrypoints.wire.errors import MissingCredentialError
from mlapi.entrypoints.wire.headers import get_bearer_credential
from mlapi.entrypoints.wire.responses import Response

_PARENT_SEGMENT = re.compile(r"(^|[/\\])\.\.?($|[/\\])|\\")
_MAX_EXEMPT_PATH_CHARS = 8192
_AUTHENTICATED = AuthCredentials(["authenticated"])
_POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1


class GuardMiddleware:
    """Passes only requests from enabled users to an ASGI application, and sets ``request.user``.

    All paths and WebSockets are guarded unless they are exempt, so new routes are guarded by default. Requests with
    ambiguous framing are rejected on every path, exempt ones included: a request smuggled inside one would bypass the
    guard.

    Args:
        app: the application to guard.
        guard: checks the credentials. If None, it is opened from the configuration when the application starts.
        exempt: paths that need no credential, such as ``/health``, or ``/docs/*`` for all paths below ``/docs``.
    """

    def __init__(self, app: ASGIApp, guard: Guard | None = None, *, exempt: Iterable[str] = ()) -> None:
        self.app = app
        self._guard = guard
        self._async_guard: AsyncGuard | None = None
        self._resources = ExitStack()
        exempt_paths = list(exempt)
        self._exempt_paths = frozenset(path for path in exempt_paths if not path.endswith("/*"))
        self._exempt_prefixes = tuple(path.removesuffix("*") for path in exempt_paths if path.endswith("/*"))
        self._handle_lifespan = StartupErrorMiddleware(self._run_lifespan)
        self._handle_request = RejectAmbiguousFraming(self._authenticate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self._handle_lifespan if scope["type"] == "lifespan" else self._handle_request
        await handle(scope, receive, send)

    async def _authenticate(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_exempt(scope):
            try:
                guard = self._async_guard or self._guard
                credential = get_bearer_credential(
                    scope["headers"], accept_bare=guard is not None and guard.accept_bare
                )
                scope["user"] = await (self._async_guard or self._open_async_guard()).check(credential)
            except MlapiError as error:
                log_outage("guard", error)
                await _reject(error_response(error), scope, receive, send)
                return
            scope["auth"] = _AUTHENTICATED
        await self.app(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            guard = self._guard or self._resources.enter_context(open_guard(load_settings()))
            self._async_guard = self._resources.enter_context(async_guard(guard))
            await self.app(scope, receive, send)
        self._async_guard = None

    def _open_async_guard(self) -> AsyncGuard:
        """Open the guard on the first request, because mounted applications have no lifespan that could open it."""
        if self._guard is None:
            raise RepositoryUnavailableError(
                "the guard is not open, because the application's lifespan did not run or failed: enable the lifespan,"
                " or pass a Guard to GuardMiddleware"
            )
        self._async_guard = self._resources.enter_context(async_guard(self._guard))
        return self._async_guard

    def _is_exempt(self, scope: Scope) -> bool:
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        if path in self._exempt_paths:
            return True
        # Paths with ".." are not exempt: the application may resolve them to a path outside the prefix.
        return (
            path.startswith(self._exempt_prefixes)
            and len(path) <= _MAX_EXEMPT_PATH_CHARS
            and not _PARENT_SEGMENT.search(path)
        )


class GuardError(AuthenticationError):
    """The error that `GuardBackend` raises. ``cause`` is the error from the guard."""

    def __init__(self, cause: MlapiError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GuardBackend(AuthenticationBackend):
    """A guard as a backend for Starlette's ``AuthenticationMiddleware``.

    Requests without a credential pass as unauthenticated; protect routes with ``@requires``.

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
            credential = get_bearer_credential(conn.scope["headers"], accept_bare=self._guard.accept_bare)
            return _AUTHENTICATED, await self._guard.check(credential)
        except MissingCredentialError:
            return None
        except MlapiError as error:
            raise GuardError(error) from None


def handle_guard_error(_conn: HTTPConnection, error: AuthenticationError) -> starlette_responses.Response:
    """Return the same error response as `GuardMiddleware`. Pass it to ``AuthenticationMiddleware`` as ``on_error``."""
    assert isinstance(error, GuardError)  # noqa: S101 - `GuardBackend` raises no other error
    return starlette_response(error_response(error.cause))


async def _reject(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_response(response, send)
    else:  # closing a WebSocket before accepting it sends a 403 response: ASGI specification
        await receive()
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "Invalid token"})
