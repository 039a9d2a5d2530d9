"""Pass the preflights of browsers through the guard, so that the application can answer them."""

from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BODY_HEADERS = frozenset({b"content-length", b"content-type", b"content-encoding"})


async def call_for_preflight(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call an application without a user, and send only the status and the headers of its response.

    Any client can send a request that looks like a preflight. An application that handles all methods alike would
    respond with its usual result, so the guard drops the body. Browsers ignore the body of a preflight's response.
    """

    async def send_without_body(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [header for header in message.get("headers", ()) if header[0].lower() not in _BODY_HEADERS]
            await send({**message, "headers": headers})
        else:
            await send({"type": "http.response.body", "more_body": message.get("more_body", False)})

    # Through extensions of the server, an application can send a body in other messages.
    anonymous = {**scope, "user": UnauthenticatedUser(), "auth": AuthCredentials(), "extensions": {}}
    await app(anonymous, receive, send_without_body)
