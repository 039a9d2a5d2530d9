"""ASGI middleware and error handlers for the service, the guard and other Starlette applications.

Middleware that only decides what to call is not a coroutine function but returns the coroutine of the next application.
Every coroutine function on the path of a request would cost as much time as its checks.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus

from starlette import responses as starlette_responses
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.application.deadlines import pause
from mlapi.application.repeated_warnings import RepeatedWarnings
from mlapi.domain.errors import (
    ChangeRejectedError,
    ConfigurationError,
    MlapiError,
    ServiceUnavailableError,
    TooManyAttemptsError,
)
from mlapi.domain.managers import ManagerIdentity
from mlapi.entrypoints.admin import AdminPolicy, check_role
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.error_responses import ambiguous_framing, error_response, http_error_response
from mlapi.entrypoints.wire.headers import (
    has_ambiguous_framing,
    has_framing_header,
    requests_upgrade,
    validate_head,
)
from mlapi.entrypoints.wire.paths import relative_path, split_patterns
from mlapi.entrypoints.wire.requests import redact_credentials
from mlapi.entrypoints.wire.responses import Response

REJECTION_SECONDS = 0.1
"""Delay of a 429 response. Without it, clients that ignore these responses would keep the event loop busy."""
error_log = RepeatedWarnings(interval_seconds=1)
"""Errors for the operator. They are logged at most once per interval, because clients can cause thousands a second."""


class Endpoint:
    """An ASGI application that calls a handler.

    Args:
        handler: returns the response to a request, or raises an `MlapiError` or an ``HTTPException``.
        name: the name of the endpoint in the metrics.
    """

    def __init__(self, handler: Callable[[Request], Awaitable[Response]], name: str) -> None:
        self._handler = handler
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._handler(request)
        except MlapiError as error:
            response = await delayed_error_response(request, error)
        except HTTPException as error:
            response = _http_exception_response(error)
        except ClientDisconnect:
            return
        await send_response(response, send)


class MethodDispatch:
    """Dispatches requests for a path by method. HEAD requests go to the GET endpoint."""

    name = "ByMethod"
    """The metrics count requests with other methods under this name. It never changes: dashboards may contain it."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        method = scope["method"]
        scope["endpoint"] = endpoint = self._endpoints["GET" if method == "HEAD" else method]
        return endpoint(scope, receive, send)


RUNTIME = "mlapi.runtime"
"""The key of the `Runtime` in the scope of a request. Reading the state of the application takes five times as long."""
MANAGER = "mlapi.manager"
"""The key of the `ManagerIdentity` in the scope of a request that `RequireAdmin` lets in, except on public paths."""

FindManager = Callable[[Client, Scope, Receive], Awaitable[ManagerIdentity | None]]
"""Returns the manager who sent a request, or None."""


async def _find_no_manager(_client: Client, _scope: Scope, _receive: Receive) -> None:
    pass


class RequireAdmin:
    """Rejects requests without admin access, before they are routed. ``app.state.admin_policy`` decides.

    Args:
        app: the application to protect.
        exclude: paths that check access themselves. A path that ends with ``/*`` stands for all paths below it.
        find_manager: finds the managers whom the policy does not know. Their role must allow the request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        exclude: Iterable[str] = (),
        find_manager: FindManager = _find_no_manager,
    ) -> None:
        self._app = app
        self._excluded_paths, self._excluded_prefixes = split_patterns(exclude)
        self._find_manager = find_manager

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and not self._is_excluded(path := relative_path(scope)):
            policy: AdminPolicy = scope["app"].state.admin_policy
            if not policy.is_open(path):
                if policy.has_admin_token(scope["headers"]):  # most requests, which need no `Client`
                    scope[MANAGER] = policy.identity
                else:
                    return self._identify(policy, scope, receive, send)
        return self._app(scope, receive, send)

    def _is_excluded(self, path: str) -> bool:
        return path in self._excluded_paths or path.startswith(self._excluded_prefixes)

    def _identify(self, policy: AdminPolicy, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application as the manager whom the policy identifies, or look the manager up."""
        client = Client.from_asgi(scope)
        try:
            scope[MANAGER] = policy.identify(client)
        except MlapiError as error:
            return self._call_as_manager(client, error, scope, receive, send)
        return self._app(scope, receive, send)

    async def _call_as_manager(
        self, client: Client, error: MlapiError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Call the application as a manager whom the policy does not know, or respond with the policy's error."""
        try:
            manager = await self._find_manager(client, scope, receive)
            if manager is None:
                raise error
            check_role(manager, scope["method"], client.path)
        except MlapiError as found:
            await send_response(logged_error_response(Request(scope), found), send)
            return
        scope[MANAGER] = manager
        await self._app(scope, receive, send)


class RejectLargeHead:
    """Rejects requests whose path, query or headers are too large, before anything else reads them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            try:
                validate_head(scope["path"], scope["query_string"], scope["headers"])
            except MlapiError as error:
                return send_response(error_response(error), send)
        return self._app(scope, receive, send)


class RejectAmbiguousFraming:
    """Rejects requests with ambiguous framing, and closes the connection after them.

    It also closes the connection after Upgrade and CONNECT requests: httptools misparses whatever follows them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and (scope["method"] == "CONNECT" or has_framing_header(scope["headers"])):
            if has_ambiguous_framing(scope["headers"]):
                return send_response(ambiguous_framing(), send)
            if scope["method"] == "CONNECT" or requests_upgrade(scope["headers"]):
                send = _with_connection_close(send)
        return self._app(scope, receive, send)


def _with_connection_close(send: Send) -> Send:
    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await send(message)

    return send_with_header


class StartupErrorMiddleware:
    """Reports a `ConfigurationError` at startup as one line, where Starlette would report a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        run = self._run_lifespan if scope["type"] == "lifespan" else self._app
        return run(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Message | None = None

        async def send_unless_failed(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                failure = message
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_unless_failed)
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": f"mlapi: {error}"})
            raise  # servers ignore this exception after the message; Starlette's TestClient raises it
        except BaseException:
            if failure is not None:
                await send(failure)
            raise


async def send_response(response: Response, send: Send) -> None:
    headers, body = [], response.body
    for name, value in response.headers:
        headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    if body:
        headers.append((b"content-type", response.media_type.encode("latin-1")))
        headers.append((b"content-length", b"%d" % len(body)))
    elif response.status == HTTPStatus.OK:
        headers.append((b"content-length", b"0"))  # otherwise, the server would send an empty chunk
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def delayed_error_response(request: Request, error: MlapiError) -> Response:
    """Return the response for an error, after a delay if the client has made too many attempts."""
    if isinstance(error, TooManyAttemptsError):
        await pause(REJECTION_SECONDS)
    return logged_error_response(request, error)


def logged_error_response(request: Request, error: MlapiError) -> Response:
    """Return the response for an error. If the operator has to act, log the details, which the response omits."""
    log_outage(f"{request.method} {redact_credentials(request.scope['path'])}", error)
    return error_response(error)


def log_outage(operation: str, error: MlapiError) -> None:
    """Log an error if the operator has to act."""
    if isinstance(error, ServiceUnavailableError | ConfigurationError | ChangeRejectedError):
        error_log.log(f"{operation}: {error}")


# --- error handlers for any Starlette application


def starlette_response(response: Response) -> starlette_responses.Response:
    return starlette_responses.Response(
        response.body, response.status, dict(response.headers), media_type=response.media_type
    )


async def handle_error(request: Request, error: Exception) -> starlette_responses.Response:
    """Handle an `MlapiError`. Register this as an exception handler of a Starlette application."""
    assert isinstance(error, MlapiError)  # noqa: S101 - registered for this exception only
    return starlette_response(logged_error_response(request, error))


async def handle_http_exception(_request: Request, error: Exception) -> starlette_responses.Response:
    """Handle Starlette's ``HTTPException``: an unknown path, or a method that the path does not support."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this exception only
    return starlette_response(_http_exception_response(error))


def _http_exception_response(error: HTTPException) -> Response:
    return http_error_response(error.status_code, tuple((error.headers or {}).items()))


async def handle_server_error(_request: Request, _error: Exception) -> starlette_responses.Response:
    """Handle an unexpected exception. Starlette logs it."""
    return starlette_response(http_error_response(HTTPStatus.INTERNAL_SERVER_ERROR))
