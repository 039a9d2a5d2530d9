"""The guard in front of an application: only users who are enabled now get through.

`GuardMiddleware` guards a whole application. `GuardBackend` is for Starlette's own ``AuthenticationMiddleware``. Test
that every route is guarded with `mlapi.testing.guarded_routes`.
"""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlapi.application.guard import AsyncGuard, Guard
from mlapi.bootstrap import async_guard, open_guard
from mlapi.config import load_settings
from mlapi.domain.errors import MlapiError, RepositoryUnavailableError
from mlapi.entrypoints.http.middleware import (
    RejectAmbiguousFraming,
    StartupErrorMiddleware,
    send_response,
    starlette_response,
)
from mlapi.entrypoints.wire import responses
from mlapi.entrypoints.wire.headers import get_bearer_credential
from mlapi.entrypoints.wire.responses import error_response

_UPWARD = re.compile(r"(^|[/\\])\.\.?($|[/\\])|\\")

_LET_IN = AuthCredentials(["authenticated"])


class GuardMiddleware:
    """Lets nobody through to an ASGI application but users, and tells it who they are in ``request.user``.

    Every path is closed that is not exempt by name, so a route that is added later is closed. So are WebSockets. A
    request whose end may be elsewhere for a proxy is refused on every path: what hides in it has not been let through.

    Args:
        app: what is guarded.
        guard: that decides. Without it, the configuration is read when the application starts.
        exempt: paths that are open to all: ``/health``, or ``/docs/*`` for all that is below.
    """

    def __init__(self, app: ASGIApp, guard: Guard | None = None, *, exempt: Iterable[str] = ()) -> None:
        self.app = app
        self._guard = guard
        self._async_guard: AsyncGuard | None = None
        self._opened = ExitStack()
        names = list(exempt)
        self._exempt = frozenset(name for name in names if not name.endswith("/*"))
        self._exempt_below = tuple(name.removesuffix("*") for name in names if name.endswith("/*"))
        self._lifespan = StartupErrorMiddleware(self._live)
        self._guarded = RejectAmbiguousFraming(self._let_in)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._lifespan if scope["type"] == "lifespan" else self._guarded)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_exempt(scope):
            try:
                credential = get_bearer_credential(scope["headers"])
                scope["user"] = await (self._async_guard or self._open()).check(credential)
            except MlapiError as error:
                await _refuse(error_response(error), scope, receive, send)
                return
            scope["auth"] = _LET_IN
        await self.app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._opened:
            guard = self._guard or self._opened.enter_context(open_guard(load_settings()))
            self._async_guard = self._opened.enter_context(async_guard(guard))
            await self.app(scope, receive, send)
        self._async_guard = None

    def _open(self) -> AsyncGuard:
        if self._guard is None:
            raise RepositoryUnavailableError("the server runs no lifespan, in which the guard would be opened")
        self._async_guard = self._opened.enter_context(async_guard(self._guard))
        return self._async_guard

    def _is_exempt(self, scope: Scope) -> bool:
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        if path in self._exempt:
            return True
        # What goes up again is not below: the application may follow it.
        return path.startswith(self._exempt_below) and not _UPWARD.search(path)


class GuardError(AuthenticationError):
    """What Starlette's ``AuthenticationMiddleware`` hands to ``on_error``, with what refused the request."""

    def __init__(self, cause: MlapiError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GuardBackend(AuthenticationBackend):
    """The guard as a backend of Starlette: who shows nothing is let through as nobody, for ``@requires`` to decide.

    >>> Middleware(AuthenticationMiddleware, backend=GuardBackend(guard), on_error=handle_guard_error)  # doctest: +SKIP

    Args:
        guard: that decides.
    """

    def __init__(self, guard: AsyncGuard) -> None:
        self._guard = guard

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, Any] | None:
        """Return the user, or None for a request without credential. Raises `GuardError` for one that is refused."""
        if "authorization" not in conn.headers:
            return None
        try:
            return _LET_IN, await self._guard.check(get_bearer_credential(conn.scope["headers"]))
        except MlapiError as error:
            raise GuardError(error) from None


def handle_guard_error(_conn: HTTPConnection, error: AuthenticationError) -> Response:
    """Answer as the guard does: ``on_error`` of ``AuthenticationMiddleware``."""
    assert isinstance(error, GuardError)  # noqa: S101 - `GuardBackend` raises no other
    return starlette_response(error_response(error.cause))


async def _refuse(answer: responses.Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_response(answer, send)
    else:  # a WebSocket that is closed before it is accepted is a 403 to its client: ASGI specification
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "Invalid token"})  # RFC 6455, 7.4.1
