"""Enforce deadlines and size limits on a worker's client connections, and limit how many there are.

A periodic check reads the state of each connection from uvicorn's own objects, so deadlines add no cost to requests.
"""

import asyncio
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import attrs
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mlapi.entrypoints.http.request_context import HEADERS
from mlapi.entrypoints.wire.error_responses import http_error_response

IDLE_SECONDS = 5
"""How long a connection stays open between requests."""
MAX_HEAD_BYTES = 64 * 1024
"""The limit for the request line and headers together. h11 uses the same limit."""
MAX_SURPLUS_CONNECTIONS = 50
"""How many connections above the maximum receive a 503 response. All others are closed without a response."""
CHECK_INTERVAL_SECONDS = 0.5
"""The interval between checks of all deadlines. Checking 8,000 connections takes about 5 ms."""


class Phase(Enum):
    """The state of a connection, named after what it is waiting for."""

    HEAD = auto()
    """Waiting for the request line and headers. A new connection starts in this phase."""
    BODY = auto()
    RESPONSE = auto()
    """Waiting for the application to respond, or for the client to read the response."""
    IDLE = auto()
    """Waiting for the next request. uvicorn enforces the deadline of this phase."""
    CLOSING = auto()
    """Waiting for the client to read the rest of the last response."""


@attrs.frozen(kw_only=True)
class Deadlines:
    """The maximum duration of each phase, measured from its start, so that slow clients cannot extend it."""

    head_seconds: float = 10.0
    body_seconds: float = 15.0
    response_seconds: float = 12.0
    """The application responds within 10 seconds. If this deadline passes, the client is not reading the response."""
    closing_seconds: float = 5.0

    @property
    def max_request_seconds(self) -> float:
        """The maximum time from the first byte of a request to the last byte of its response."""
        return self.head_seconds + self.body_seconds + self.response_seconds

    def for_phase(self, phase: Phase) -> float | None:
        """Return the deadline of a phase in seconds, or None if this module does not enforce one."""
        return {
            Phase.HEAD: self.head_seconds,
            Phase.BODY: self.body_seconds,
            Phase.RESPONSE: self.response_seconds,
            Phase.CLOSING: self.closing_seconds,
        }.get(phase)


class State(ServerState):
    """State that is shared by all connections of a worker."""

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.drain_now = False
        """Whether connections without a request are closed immediately when draining."""


class Connection(HttpToolsProtocol):
    """A client connection with deadlines and size limits."""

    server_state: State
    transport: asyncio.Transport
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # initially None in the base class too
    """The latest request with complete headers, and its response."""

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.is_surplus = False
        self.head_bytes = 0
        self.last_seen: tuple[Phase, RequestResponseCycle | None] | None = None
        """The phase and request at the last check."""
        self.seen_since = 0.0
        """When a check first saw this phase and request, in event loop time."""

    @property
    def phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.timeout_keep_alive_task is not None:
            return Phase.IDLE
        if self.cycle is None or self.cycle.response_complete:
            return Phase.HEAD
        return Phase.BODY if self.cycle.more_body else Phase.RESPONSE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        surplus = len(self.connections) - self.server_state.max_connections
        self.is_surplus = surplus > 0
        if surplus > MAX_SURPLUS_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.is_surplus:
            # Respond only after data has arrived: closing a connection with unread data resets it, and the client would
            # lose the response.
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, ("Retry-After", str(IDLE_SECONDS)))
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # the headers of the next request are incomplete
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self.head_bytes = 0

    def shutdown(self) -> None:
        """Close the connection after its current or next request.

        The client may already have sent its next request, which must be served. A connection without a request
        therefore stays open until its deadline, unless the worker has to drain now.
        """
        if self.phase in {Phase.HEAD, Phase.IDLE} and not self.server_state.drain_now:
            return
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client has not read the last response
        else:
            super().timeout_keep_alive_handler()

    def enforce_deadline(self, now: float, deadlines: Deadlines) -> None:
        """End the connection if its phase would exceed the deadline before the next check."""
        phase = self.phase
        seen = phase, self.cycle
        if seen != self.last_seen:
            self.last_seen, self.seen_since = seen, now
            return
        deadline = deadlines.for_phase(phase)
        # Subtract three intervals: one because the phase may have started that long before it was first seen, one until
        # the next check, and one because checking many connections takes time.
        if deadline is None or now - self.seen_since < deadline - 3 * CHECK_INTERVAL_SECONDS:
            return
        if phase is Phase.BODY or (phase is Phase.HEAD and self.head_bytes):
            self.send_error(HTTPStatus.REQUEST_TIMEOUT)
        elif phase is Phase.HEAD:
            self.transport.close()
        else:
            self.transport.abort()

    def send_error(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        """Send an error response in place of the application's response, and close the connection."""
        response = http_error_response(status, headers)
        lines = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(response.body)),
            (b"connection", b"close"),
            *[(name.lower().encode(), value.encode()) for name, value in response.headers],
            *HEADERS,
        ]
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            head = b"".join(b"%s: %s\r\n" % line for line in lines)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + response.body)
        self.transport.close()
