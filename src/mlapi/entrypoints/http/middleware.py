"""Our HTTP as ASGI, and what stands around an application: for `http`, `guard` and applications on Starlette."""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.domain.errors import ConfigurationError, MlapiError, ServiceUnavailableError
from mlapi.entrypoints.wire import requests, responses
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.headers import has_ambiguous_framing, has_framing_header, requests_upgrade
from mlapi.entrypoints.wire.responses import error_response, http_error_response

_logger = logging.getLogger("mlapi")


class Endpoint:
    """An endpoint as an ASGI application: a function from a request to an answer, or to an error that refuses it."""

    def __init__(self, function: Callable[[Request], Awaitable[responses.Response]]) -> None:
        self._function = function
        self.name = function.__name__
        """In the metrics."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._function(request)
        except MlapiError as error:
            answer = logged_error_response(request, error)
        except ClientDisconnect:
            return
        await send_response(answer, send)


class MethodDispatch:
    """One path with several methods, which as several routes would each refuse the other's."""

    def __init__(self, **endpoints: Endpoint) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        scope["endpoint"] = endpoint = self._endpoints["GET" if method == "HEAD" else method]
        await endpoint(scope, receive, send)


class RequireAdmin:
    """Refuses before routing whoever may not go on to a path, by ``app.state.admin_policy``.

    Args:
        app: what is guarded.
        exclude: a path that decides about its callers itself, and all below it.
    """

    def __init__(self, app: ASGIApp, *, exclude: str | None = None) -> None:
        self._app = app
        self._exclude = exclude

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            caller = Client.from_asgi(scope)
            try:
                if self._exclude is None or not f"{caller.path}/".startswith(f"{self._exclude}/"):
                    scope["app"].state.admin_policy.check(caller)
            except MlapiError as error:
                await send_response(error_response(error), send)
                return
        await self._app(scope, receive, send)


class RejectAmbiguousFraming:
    """Refuses a request whose end may be elsewhere for a proxy, and closes the connection after it.

    It closes it too after any other that asks for an upgrade or a tunnel: what comes behind it, httptools reads amiss.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"] == "CONNECT" or has_framing_header(scope["headers"])):
            if has_ambiguous_framing(scope["headers"]):
                await send_response(responses.ambiguous_framing(), send)
                return
            if scope["method"] == "CONNECT" or requests_upgrade(scope["headers"]):
                send = _closing(send)
        await self._app(scope, receive, send)


def _closing(send: Send) -> Send:
    async def send_as_the_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return send_as_the_last


class StartupErrorMiddleware:
    """Tells the server of a `ConfigurationError` in one line, where Starlette would send a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        failure: Message | None = None

        async def hold_back_failure(message: Message) -> None:
            nonlocal failure
            if message["type"] == "lifespan.startup.failed":
                failure = message
            else:
                await send(message)

        try:
            await self._app(scope, receive, hold_back_failure)
        except ConfigurationError as error:
            await send({"type": "lifespan.startup.failed", "message": f"mlapi: {error}"})
        except BaseException:
            if failure is not None:
                await send(failure)
            raise


async def send_response(answer: responses.Response, send: Send) -> None:
    about_body = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer.body))]
    headers = [
        *(about_body if answer.body else []),
        *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def logged_error_response(request: Request, error: MlapiError) -> responses.Response:
    if isinstance(error, ServiceUnavailableError | ConfigurationError):
        _logger.warning("%s %s: %s", request.method, requests.redact_credentials(request.url.path), error)
    return error_response(error)


# --- for applications of other frameworks that are built on Starlette


def starlette_response(answer: responses.Response) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")


async def handle_error(request: Request, error: Exception) -> Response:
    """Exception handler for `MlapiError`."""
    assert isinstance(error, MlapiError)  # noqa: S101 - it is registered for no other
    return starlette_response(logged_error_response(request, error))


async def handle_http_exception(_request: Request, error: Exception) -> Response:
    """Exception handler for Starlette's ``HTTPException``: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for no other
    return starlette_response(http_error_response(error.status_code, tuple((error.headers or {}).items())))


async def handle_server_error(_request: Request, _error: Exception) -> Response:
    return starlette_response(http_error_response(HTTPStatus.INTERNAL_SERVER_ERROR))
