"""What is the same for every request: an id, strict headers, its time in the metrics, and no secret in a log."""

import random
import re
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.entrypoints.logs import REQUEST_ID
from mlapi.entrypoints.wire import requests
from mlapi.entrypoints.wire.client import Client, Network

HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
"""Of every answer that does not say otherwise, whatever its status (OWASP Secure Headers Project)."""

CLIENT_CLOSED_REQUEST = 499
"""In the metrics, of what ended without an answer as nobody waited for it any more: nginx's number."""

_NAMES = frozenset(name for name, _ in HEADERS)
_ID = re.compile(rb"[A-Za-z0-9._~+/=-]{1,64}")


class RequestContextMiddleware:
    """Stands around a whole application, its error handling included.

    A request has the id that a trusted proxy gives it in ``X-Request-Id``, or a new one: 64 random bits in hex.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _hidden_from_the_log(scope)
        serving = scope["app"].state.runtime
        request_id = _given_id(scope, serving.trusted_proxies) or f"{random.getrandbits(64):016x}"
        token = REQUEST_ID.set(request_id)
        status = CLIENT_CLOSED_REQUEST
        begun = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = message["headers"]
                given = _NAMES.intersection([name for name, _ in own])
                more = [header for header in HEADERS if header[0] not in given] if given else HEADERS
                message["headers"] = [*own, *more, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except BaseException:
            status = 500
            raise
        finally:
            serving.metrics.request(_name_of(scope), scope["method"], status, time.perf_counter() - begun)
            REQUEST_ID.reset(token)


def _hidden_from_the_log(scope: Scope) -> Scope:
    """Return the scope for the application; what the server must not write into its access log is taken out of its own.

    It logs the scope that it gave us: credentials in a path, and any query.
    """
    path = scope["path"]
    shown = requests.redact_credentials(path)
    if shown == path and not scope["query_string"]:
        return scope
    own, scope = scope, dict(scope)
    own["path"], own["query_string"] = shown, b""
    own.pop("raw_path", None)
    return scope


def _given_id(scope: Scope, trusted: Sequence[Network]) -> str | None:
    if not trusted or not Client.from_asgi(scope).is_trusted_proxy(trusted):
        return None
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    return given[0].decode("ascii") if len(given) == 1 and _ID.fullmatch(given[0]) else None


def _name_of(scope: Scope) -> str:
    """Return what answered: our name of the endpoint, never a path, which anybody may choose."""
    endpoint = scope.get("endpoint")
    if endpoint is None:
        return "none"
    name: str = getattr(endpoint, "name", None) or getattr(endpoint, "__name__", None) or type(endpoint).__name__
    return name
