"""Let browsers call some operations from pages of other origins (CORS, Fetch Standard, 3.3).

The table of operations marks these operations. Browsers send no cookies, because credentials mode is not enabled.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.entrypoints.http.middleware import send_response
from mlapi.entrypoints.wire.error_responses import http_error_response
from mlapi.entrypoints.wire.headers import header_values
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.entrypoints.wire.paths import relative_path
from mlapi.entrypoints.wire.preflights import is_preflight
from mlapi.entrypoints.wire.responses import Response

ANY_ORIGIN = "*"
_MAX_AGE_SECONDS = 600
_REQUEST_HEADERS = "Authorization, Content-Type, X-API-Key"
_EXPOSED_HEADERS = b"Retry-After, X-Request-Id"
_OPERATIONS = [operation for operation in OPERATIONS if operation.cross_origin]
_METHODS_BY_PATTERN = {
    pattern: [operation.method for operation in _OPERATIONS if operation.path_pattern == pattern]
    for pattern in dict.fromkeys(operation.path_pattern for operation in _OPERATIONS)
}
_PATHS = re.compile("|".join(f"({pattern})" for pattern in _METHODS_BY_PATTERN), re.DOTALL)
_METHODS = list(_METHODS_BY_PATTERN.values())


class CorsPolicy:
    """Decides whether a browser may call an operation from a page of another origin.

    Args:
        origins: such as ``https://app.example.com``, or only ``*`` for all origins.
    """

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode("ascii") for origin in origins)
        self._allows_any = ANY_ORIGIN.encode() in self._origins

    async def respond(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a preflight, or call the application and add the headers to its response, also to an error."""
        methods = _find_methods(scope)
        if not methods:
            await app(scope, receive, send)
            return
        headers = self._headers(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        method = scope["method"]
        if is_preflight(method, scope["headers"]):
            is_allowed = any(name == b"access-control-allow-origin" for name, _ in headers)
            await send_response(_preflight_response(methods) if is_allowed else _forbidden(), send_with_headers)
        else:
            is_cross_origin = ("GET" if method == "HEAD" else method) in methods
            await app(scope, receive, send_with_headers if is_cross_origin else send)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        if self._allows_any:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED_HEADERS)]
        vary = (b"vary", b"Origin")
        origins = header_values(scope["headers"], b"origin")
        if len(origins) != 1 or origins[0] not in self._origins:
            return [vary]
        return [
            vary,
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-expose-headers", _EXPOSED_HEADERS),
        ]


def _find_methods(scope: Scope) -> list[str]:
    match = _PATHS.fullmatch(relative_path(scope))
    return [] if match is None or match.lastindex is None else _METHODS[match.lastindex - 1]


def _preflight_response(methods: list[str]) -> Response:
    headers = (
        ("Access-Control-Allow-Methods", ", ".join(methods)),
        ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
        ("Access-Control-Max-Age", str(_MAX_AGE_SECONDS)),
    )
    return Response(HTTPStatus.NO_CONTENT, b"", headers)


def _forbidden() -> Response:
    message = "The service rejects requests from pages of this origin: add the origin to http.cors_origins"
    return http_error_response(HTTPStatus.FORBIDDEN, message=message)
