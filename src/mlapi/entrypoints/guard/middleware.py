"""The guard as ASGI middleware."""

import re
from collections.abc import Iterable
from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.application.guard import AsyncGuard, Guard
from mlapi.bootstrap import async_guard, open_guard
from mlapi.config import load_settings
from mlapi.domain.errors import ConfigurationError, MlapiError
from mlapi.domain.users import User
from mlapi.entrypoints.guard.admissions import SCOPE_KEY, finishing
from mlapi.entrypoints.guard.backend import AUTHENTICATED
from mlapi.entrypoints.guard.lifespans import run_lifespan
from mlapi.entrypoints.guard.preflights import call_for_preflight
from mlapi.entrypoints.guard.rechecks import POLICY_VIOLATION, Rechecks
from mlapi.entrypoints.http.lifespans import freeze_startup_objects
from mlapi.entrypoints.http.middleware import (
    RejectAmbiguousFraming,
    StartupErrorMiddleware,
    log_outage,
    send_response,
)
from mlapi.entrypoints.wire.error_responses import error_response
from mlapi.entrypoints.wire.headers import get_bearer_credential
from mlapi.entrypoints.wire.paths import relative_path, split_patterns
from mlapi.entrypoints.wire.preflights import is_preflight
from mlapi.entrypoints.wire.responses import Response
from mlapi.entrypoints.wire.subprotocols import find_bearer_subprotocol

_PARENT_SEGMENT = re.compile(r"(^|[/\\])\.\.?($|[/\\])|\\")
_MAX_EXEMPT_PATH_CHARS = 8192


class GuardMiddleware:
    """Passes only the requests that a guard admits to an ASGI application, and sets ``request.user``.

    ``request.scope["mlapi"]`` is the `mlapi.Admission`: call its ``charge`` to count units, such as generated tokens.
    Units that are charged during a response are stored before its end.

    All paths and WebSockets are guarded unless they are exempt, so new routes are guarded by default. Requests with
    ambiguous framing are rejected on every path, exempt ones included: a request smuggled inside one would bypass the
    guard. Browsers' preflights reach the application without a user, but the guard drops the body of the response.

    Browsers send the credential of a WebSocket as a subprotocol: ``new WebSocket(url, ["bearer", token])``. The
    application's scope does not contain it.

    Args:
        app: the application to guard.
        guard: checks the credentials. If None, it is opened from the configuration when the application starts.
        exempt: paths that need no credential, such as ``/health``, or ``/docs/*`` for all paths below ``/docs``.
        recheck_seconds: the interval between two checks of the users of open WebSockets and streams. The guard ends the
            connections of users who have lost access. If None, the guard ends no connections.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: Guard | None = None,
        *,
        exempt: Iterable[str] = (),
        recheck_seconds: float | None = None,
    ) -> None:
        self.app = app
        self._guard = guard
        self._async_guard: AsyncGuard | None = None
        self._resources = ExitStack()
        self._exempt_paths, self._exempt_prefixes = split_patterns(exempt)
        self._rechecks = None if recheck_seconds is None else Rechecks(recheck_seconds, self._check_again)
        self._handle_lifespan = StartupErrorMiddleware(self._run_lifespan)
        self._handle_request = RejectAmbiguousFraming(self._authenticate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self._handle_lifespan if scope["type"] == "lifespan" else self._handle_request
        await handle(scope, receive, send)

    async def _authenticate(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_exempt(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "http" and is_preflight(scope["method"], scope["headers"]):
            await call_for_preflight(self.app, scope, receive, send)
            return
        try:
            credential, send_accepted = self._get_credential(scope, send)
            admission = await (self._async_guard or self._open_async_guard()).admit(credential)
        except MlapiError as error:
            log_outage("guard", error)
            await _reject(error_response(error), scope, receive, send)
            return
        scope["user"], scope["auth"], scope[SCOPE_KEY] = admission.user, AUTHENTICATED, admission
        if admission.limits and scope["type"] == "http":
            send_accepted = finishing(send_accepted, admission)
        if self._rechecks is None:
            await self.app(scope, receive, send_accepted)
        else:
            await self._rechecks.run(self.app, scope, receive, send_accepted, credential)

    async def _check_again(self, credential: str) -> User:
        return await (self._async_guard or self._open_async_guard()).identify(credential)

    def _get_credential(self, scope: Scope, send: Send) -> tuple[str, Send]:
        """Remove the credential from the scope's subprotocols. Return it, and a function that sends messages."""
        guard, headers = self._async_guard or self._guard, scope["headers"]
        accept_bare = guard is not None and guard.accept_bare
        bearer = find_bearer_subprotocol(scope.get("subprotocols", ())) if scope["type"] == "websocket" else None
        offered = "" if bearer is None else bearer.credential
        credential = get_bearer_credential(headers, accept_bare=accept_bare, offered=offered)
        if bearer is None:
            return credential, send
        scope["headers"], scope["subprotocols"] = bearer.remove_from(headers), bearer.others
        return credential, _with_subprotocol(bearer.name, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Open the guard last, because a service that is mounted in the application may create the database.
        with self._resources:
            await run_lifespan(self.app, scope, receive, send, on_started=self._open_configured_guard)
        self._async_guard = None

    def _open_configured_guard(self) -> None:
        guard = self._guard or self._resources.enter_context(open_guard(load_settings()))
        self._async_guard = self._resources.enter_context(async_guard(guard))
        freeze_startup_objects()

    def _open_async_guard(self) -> AsyncGuard:
        """Open the guard on the first request, because frameworks run no lifespan of a mounted application."""
        if self._guard is None:
            raise ConfigurationError(
                "the guard is not open, because the application's lifespan did not run or failed: enable the lifespan,"
                " or pass a Guard to GuardMiddleware; if the application is mounted, pass it to compose_lifespans of"
                " mlapi.entrypoints.http"
            )
        self._async_guard = self._resources.enter_context(async_guard(self._guard))
        return self._async_guard

    def _is_exempt(self, scope: Scope) -> bool:
        path = relative_path(scope)
        if path in self._exempt_paths:
            return True
        # Paths with ".." are not exempt: the application may resolve them to a path outside the prefix.
        return (
            path.startswith(self._exempt_prefixes)
            and len(path) <= _MAX_EXEMPT_PATH_CHARS
            and not _PARENT_SEGMENT.search(path)
        )


async def _reject(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send_response(response, send)
    else:  # closing a WebSocket before accepting it sends a 403 response: ASGI specification
        await receive()
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "Invalid token"})


def _with_subprotocol(name: str, send: Send) -> Send:
    """Return a function that selects this subprotocol for a WebSocket unless the application selects another one."""

    async def send_with_subprotocol(message: Message) -> None:
        if message["type"] == "websocket.accept" and not message.get("subprotocol"):
            message = {**message, "subprotocol": name}
        await send(message)

    return send_with_subprotocol
