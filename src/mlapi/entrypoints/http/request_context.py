"""Set request ids, deadlines and security headers, measure requests, and keep credentials out of the access log."""

import logging
import re
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.application.deadlines import end_deadline, start_deadline
from mlapi.domain.addresses import Network
from mlapi.entrypoints.http.middleware import RUNTIME, error_log, send_response
from mlapi.entrypoints.http.peers import connected_client
from mlapi.entrypoints.http.root_path import remove_repeated_root
from mlapi.entrypoints.logs import REQUEST_ID, generate_request_id
from mlapi.entrypoints.wire.client import Client
from mlapi.entrypoints.wire.error_responses import http_error_response
from mlapi.entrypoints.wire.headers import header_values
from mlapi.entrypoints.wire.requests import redact_credentials

HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
"""The default headers of all responses, including errors (OWASP Secure Headers Project)."""

CLIENT_CLOSED_REQUEST = 499
"""The status in metrics and access log if the client disconnects before it has received the whole response.

nginx uses the same code.
"""

NOT_STARTED = (
    "mlapi has not started, because its lifespan did not run: create the application that mounts it with"
    " lifespan=compose_lifespans(<mounted application>), from mlapi.entrypoints.http"
)
"""The message of every response until the lifespan has opened the database."""
_NOT_STARTED_RETRY_SECONDS = 10
_HEADER_NAMES = frozenset(name for name, _ in HEADERS)
_access_logger = logging.getLogger("uvicorn.access")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=-]{1,64}")


class RequestContextMiddleware:
    """Wraps a whole application, including its error handling.

    The request id is the ``X-Request-Id`` that a trusted proxy sends, or otherwise 64 random bits in hex.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(_without_credentials(scope), receive, send)
            return
        remove_repeated_root(scope)
        try:
            runtime = scope["app"].state.runtime
        except AttributeError:
            _correct_access_log(scope, None)
            await _respond_not_started(send)
            return
        proxied = _proxied_client(scope, receive, runtime.trusted_proxies)
        address = None if proxied is None else proxied.resolve_address(runtime.trusted_proxies)
        scope = _correct_access_log(scope, address)
        scope[RUNTIME] = runtime
        request_id = (proxied and _forwarded_id(scope)) or generate_request_id()
        has_disconnected = partial(_has_disconnected, send)
        token, deadline_token = REQUEST_ID.set(request_id), start_deadline(is_disconnected=has_disconnected)
        status = CLIENT_CLOSED_REQUEST
        has_failed_to_send = False
        started = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status, has_failed_to_send
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                overridden = _HEADER_NAMES.intersection([name for name, _ in headers])
                defaults = [header for header in HEADERS if header[0] not in overridden] if overridden else HEADERS
                message["headers"] = [*headers, *defaults, (b"x-request-id", request_id.encode())]
            try:
                await send(message)
            except (OSError, RuntimeError) as error:
                if not _is_disconnect(error):
                    raise
                has_failed_to_send = True

        try:
            app = self._app if runtime.cors is None else partial(runtime.cors.respond, self._app)
            await app(scope, receive, send_with_headers)
            if has_failed_to_send or has_disconnected():
                status = CLIENT_CLOSED_REQUEST
        except BaseException:
            status = 500
            raise
        finally:
            if status == CLIENT_CLOSED_REQUEST:
                _log_disconnect(scope, address)
            seconds = time.perf_counter() - started
            runtime.metrics.count_request(_endpoint_name(scope), scope["method"], status, seconds)
            end_deadline(deadline_token)
            REQUEST_ID.reset(token)


def _without_credentials(scope: Scope) -> Scope:
    """Return a scope that is not for HTTP. No path accepts a WebSocket, but the server logs each path."""
    return _correct_access_log(scope, None) if scope["type"] == "websocket" else scope


async def _respond_not_started(send: Send) -> None:
    error_log.log(NOT_STARTED)
    headers = [(name.decode(), value.decode()) for name, value in HEADERS]
    headers.append(("Retry-After", str(_NOT_STARTED_RETRY_SECONDS)))
    await send_response(http_error_response(HTTPStatus.SERVICE_UNAVAILABLE, headers, NOT_STARTED), send)


def _is_disconnect(error: Exception) -> bool:
    """Return whether sending failed because the client has disconnected.

    ASGI servers raise an `OSError`. uvicorn discards the message instead, except for pipelined requests, where uvloop
    raises.
    """
    return isinstance(error, OSError) or "the handler is closed" in str(error)


def _has_disconnected(send: Send) -> bool:
    """Return whether uvicorn has noticed that the client has disconnected. Other servers do not report this."""
    return getattr(getattr(send, "__self__", None), "disconnected", False) is True


def _log_disconnect(scope: Scope, address: str | None) -> None:
    """Write a line to the access log. The server only writes one when it starts to send a response."""
    client = ":".join(map(str, scope.get("client") or ())) if address is None else f"{address}:0"
    path = quote(redact_credentials(scope["path"]))
    arguments = (client, scope["method"], path, scope["http_version"], CLIENT_CLOSED_REQUEST)
    _access_logger.info('%s - "%s %s HTTP/%s" %d', *arguments)


def _correct_access_log(scope: Scope, address: str | None) -> Scope:
    """Return a copy of the scope for the application. Remove credentials from the original, and set the client address.

    The server writes its access log from the original scope. Most scopes need no copy.

    Args:
        scope: the scope from the server.
        address: the client address behind a trusted proxy, or None if there is no proxy.
    """
    path = scope["path"]
    redacted = redact_credentials(path)
    if redacted == path and not scope["query_string"] and address is None:
        return scope
    server_scope, scope = scope, dict(scope)
    server_scope["path"], server_scope["query_string"] = redacted, b""
    server_scope.pop("raw_path", None)
    if address is not None:
        server_scope["client"] = (address, 0)
    return scope


def _proxied_client(scope: Scope, receive: Receive, trusted_proxies: Sequence[Network]) -> Client | None:
    """Return the client if it is a trusted proxy, or None."""
    if not trusted_proxies:
        return None
    client = connected_client(scope, receive)
    return client if client.is_trusted_proxy(trusted_proxies) else None


def _forwarded_id(scope: Scope) -> str | None:
    """Return the request id that a trusted proxy sent, or None."""
    ids = header_values(scope["headers"], b"x-request-id")
    return ids[0].decode("ascii") if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]) else None


def _endpoint_name(scope: Scope) -> str:
    """Return the name of the endpoint for the metrics, never its path: clients could make up any number of paths."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return "none"
    name: str = getattr(endpoint, "name", None) or getattr(endpoint, "__name__", None) or type(endpoint).__name__
    return name
