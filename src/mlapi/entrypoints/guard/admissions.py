"""Admit the requests of any ASGI framework, and finish the responses to admitted requests."""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlapi.application.admissions import Admission
from mlapi.application.guard import AsyncGuard
from mlapi.entrypoints.wire.headers import get_bearer_credential
from mlapi.entrypoints.wire.rate_limits import rate_limit_headers

SCOPE_KEY = "mlapi"
"""The key of the admission in the scope of a request."""
_LAST_MESSAGES = frozenset({"http.response.pathsend", "http.response.trailers"})
_FIRST_FIELD = b"ratelimit-policy"


async def admit_request(connection: HTTPConnection, guard: AsyncGuard) -> Admission:
    """Admit a request or a WebSocket, for example in a dependency of FastAPI.

    Store the admission in ``connection.scope["mlapi"]``. Add `AdmissionMiddleware` to the application, which finishes
    the responses.

    Raises:
        MissingCredentialError: if the request has neither a token nor an API key.
        InvalidTokenError, AccessDeniedError, RequestLimitReachedError, ConfigurationError, RepositoryUnavailableError:
            see `mlapi.Guard.admit`.
    """
    credential = get_bearer_credential(connection.scope["headers"], accept_bare=guard.accept_bare)
    connection.scope[SCOPE_KEY] = admission = await guard.admit(credential)
    return admission


class AdmissionMiddleware:
    """Finishes the responses to requests that a dependency or `GuardBackend` has admitted.

    It adds the fields ``RateLimit`` and ``RateLimit-Policy``, and stores charged units before the end of the response.
    `GuardMiddleware` does this itself. Add this middleware outside ``AuthenticationMiddleware``.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_finished(message: Message) -> None:
            admission = scope.get(SCOPE_KEY)
            await send(message if admission is None else await finish(message, admission))

        await self._app(scope, receive, send_finished if scope["type"] == "http" else send)


def finishing(send: Send, admission: Admission) -> Send:
    """Return a function that sends the messages of the response to an admitted request."""

    async def send_finished(message: Message) -> None:
        await send(await finish(message, admission))

    return send_finished


async def finish(message: Message, admission: Admission) -> Message:
    """Add the rate-limit fields to the start of a response. Before its end, wait until charged units are stored."""
    kind = message["type"]
    if kind == "http.response.start":
        headers = list(message.get("headers", ()))
        if admission.limits and not any(name.lower() == _FIRST_FIELD for name, _ in headers):
            fields = [
                (name.lower().encode("ascii"), value.encode("ascii"))
                for name, value in rate_limit_headers(admission.limits)
            ]
            return {**message, "headers": [*headers, *fields]}
    elif kind in _LAST_MESSAGES or (kind == "http.response.body" and not message.get("more_body", False)):
        await admission.settle()
    return message
