"""Requests as values, and a client that passes them to an ASGI application like a server."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import attrs
from starlette.types import Message


@attrs.frozen
class Request:
    method: str
    target: str
    """Percent-encoded. It may contain any byte, as a Latin-1 character."""
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def to_bytes(self) -> bytes:
        framed = (*self.headers, (b"content-length", b"%d" % len(self.body)), (b"connection", b"close"))
        head = b"".join(b"%s: %s\r\n" % header for header in framed)
        return f"{self.method} {self.target} HTTP/1.1\r\n".encode() + head + b"\r\n" + self.body

    def to_scope(self, app: object) -> dict[str, Any]:
        """Return the ASGI scope that uvicorn creates for this request."""
        path, _, query = self.target.partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [*self.headers, (b"content-length", b"%d" % len(self.body))],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8_001),
            "state": {},
            "app": app,
        }


@attrs.frozen
class Response:
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    @property
    def is_html(self) -> bool:
        return any(name == b"content-type" and value.startswith(b"text/html") for name, value in self.headers)


async def call_app(app: Any, request: Request, pieces: int = 1) -> Response | None:
    """Call the application like a server; return None if it sends nothing, which is allowed after a disconnect."""
    return await call_with_scope(app, request.to_scope(app), request.body, pieces)


async def call_with_scope(app: Any, scope: dict[str, Any], body: bytes, pieces: int = 1) -> Response | None:
    """Call the application with a scope and a body in this many pieces. See `call_app`."""
    size = max(1, -(-len(body) // max(1, pieces)))
    chunks = [body[begin : begin + size] for begin in range(0, len(body), size)] or [b""]
    incoming: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    incoming[-1]["more_body"] = pieces == 0
    sent: list[Any] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop(0)
        if pieces:
            await asyncio.Event().wait()  # the client stays connected
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        assert pieces == 0
        return None
    start, *bodies = sent
    return Response(start["status"], start["headers"], b"".join(body["body"] for body in bodies))
