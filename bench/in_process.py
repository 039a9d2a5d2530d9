"""Call an ASGI application in this process, as a server does: 64 requests at once, without connections."""

import asyncio
from collections.abc import Sequence

import attrs
from starlette.types import ASGIApp, Message, Scope

CONCURRENCY = 64


@attrs.frozen
class Request:
    """A request. ``body`` is JSON."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def to_scope(self) -> Scope:
        """Return the scope that uvicorn creates for this request."""
        content = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body)))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1:8001"), *self.headers, *(content if self.body else ())],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8001),
            "state": {},
        }


async def send_requests(app: ASGIApp, requests: Sequence[Request]) -> None:
    """Send requests, `CONCURRENCY` at once.

    Raises:
        RuntimeError: if a response is not successful.
    """
    waiting = iter([(request.to_scope(), request.body) for request in requests])

    async def send_until_done() -> None:
        for scope, body in waiting:
            await _send_request(app, scope, body)

    await asyncio.gather(*(send_until_done() for _ in range(CONCURRENCY)))


async def _send_request(app: ASGIApp, scope: Scope, body: bytes) -> None:
    has_received = False
    status = 0

    async def receive() -> Message:
        nonlocal has_received
        if has_received:
            await asyncio.Event().wait()  # the client stays connected
        has_received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    path = scope["path"]
    await app(scope, receive, send)
    if not 200 <= status < 300:
        raise RuntimeError(f"{scope['method']} {path}: status {status}")
