"""Admit the requests of any ASGI framework, and complete the responses to admitted requests.

Completing a response means adding the rate-limit headers, and storing charged units before its end.
"""

from collections.abc import Awaitable

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.application.admissions import Admission
from mlapi.application.guard import AsyncGuard
from mlapi.entrypoints.wire.headers import get_bearer_credential
from mlapi.entrypoints.wire.rate_limits import RATE_LIMIT_HEADERS, rate_limit_headers

SCOPE_KEY = "mlapi"
"""The key of the admission in the scope of a request."""
_LAST_MESSAGES = frozenset({"http.response.pathsend", "http.response.trailers"})
_FIELDS = {name: name.lower().encode("ascii") for name in RATE_LIMIT_HEADERS}
_FIRST_FIELD = _FIELDS[RATE_LIMIT_HEADERS[0]]


async def admit_request(connection: HTTPConnection, guard: AsyncGuard) -> Admission:
    """Admit a request or a WebSocket, for example in a dependency of FastAPI.

    Store the admission in ``connection.scope["mlapi"]``. Add `AdmissionMiddleware` to the application: it completes the
    responses. Each call counts a request, so do not call this behind `GuardMiddleware`, which has counted it already.

    Raises:
        MissingCredentialError: if the request has neither a token nor an API key.
        InvalidTokenError, AccessDeniedError, RequestLimitReachedError, ConfigurationError, RepositoryUnavailableError:
            see `mlapi.Guard.admit`.
    """
    credential = get_bearer_credential(connection.scope["headers"], accept_bare=guard.accept_bare)
    connection.scope[SCOPE_KEY] = admission = await guard.admit(credential)
    return admission


class AdmissionMiddleware:
    """Completes the responses to requests that a dependency or `GuardBackend` has admitted.

    It adds the headers ``RateLimit`` and ``RateLimit-Policy``, and stores charged units before the end of the response.
    `GuardMiddleware` does this itself. Add this middleware outside ``AuthenticationMiddleware``.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        def send_finished(message: Message) -> Awaitable[None]:
            admission = scope.get(SCOPE_KEY)
            return send(message) if admission is None else _send_finished(message, send, admission)

        await self._app(scope, receive, send_finished if scope["type"] == "http" else send)


def finishing(send: Send, admission: Admission) -> Send:
    """Return a function that completes and sends the messages of the response to an admitted request."""
    return lambda message: _send_finished(message, send, admission)


def _send_finished(message: Message, send: Send, admission: Admission) -> Awaitable[None]:
    """Send a message. Add the rate-limit headers to the start of a response. Before its end, store charged units."""
    kind = message["type"]
    if kind == "http.response.start":
        return send(_add_fields(message, admission) if admission.limits else message)
    is_last = kind in _LAST_MESSAGES or (kind == "http.response.body" and not message.get("more_body", False))
    return _send_settled(message, send, admission) if is_last and admission.pending is not None else send(message)


def _add_fields(message: Message, admission: Admission) -> Message:
    headers = list(message.get("headers", ()))
    for name, _ in headers:
        if name == _FIRST_FIELD:  # names are in lower case: ASGI specification
            return message
    for name, value in rate_limit_headers(admission.limits):
        headers.append((_FIELDS[name], value.encode("ascii")))
    return {**message, "headers": headers}


async def _send_settled(message: Message, send: Send, admission: Admission) -> None:
    await admission.settle()
    await send(message)
