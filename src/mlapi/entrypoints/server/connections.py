"""Enforce deadlines and size limits on a worker's client connections, and limit how many there are.

A periodic check reads the state of each connection from uvicorn's own objects, so deadlines add no cost to requests.

The memory of a connection is bounded: it holds one request, `READ_BYTES` of the following ones, and one response. It
reads, parses and serves nothing more until the client has read the response.
"""

import asyncio
import select
from collections.abc import Iterable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import attrs
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from mlapi.domain.addresses import UNIX_PEER
from mlapi.entrypoints.http.request_context import HEADERS
from mlapi.entrypoints.server.addresses import ConnectionsPerAddress
from mlapi.entrypoints.server.pipelining import RequestSplitter, RoundRobin
from mlapi.entrypoints.wire.error_responses import http_error_response
from mlapi.entrypoints.wire.errors import MAX_HEADERS

RETRY_SECONDS = "5"
"""When a client with too many connections may try again."""
MAX_HEAD_BYTES = 64 * 1024
"""The limit for the request line and headers together. h11 uses the same limit."""
MAX_TARGET_BYTES = 16 * 1024
"""The limit for the path and query of a request, which uvicorn decodes. The application accepts shorter ones only."""
READ_BYTES = 16 * 1024
"""The maximum length of one read from a connection. Most requests are much shorter."""
MAX_SURPLUS_CONNECTIONS = 50
"""How many connections above a maximum receive a 503 response. All others are closed without a response."""
CHECK_INTERVAL_SECONDS = 0.5
"""The interval between checks of all deadlines. Checking 8,000 connections takes about 5 ms."""
MAX_PIECES_PER_TURN = 16
"""How many pieces of a request are parsed before other connections have their turn."""
_CLOSE = (b"connection", b"close")
_TOO_MANY_CONNECTIONS = "Too many connections: the server's limit (--connections) is reached, try again"
_TOO_MANY_CONNECTIONS_OF_ADDRESS = (
    "Too many connections from your address: the server's limit (--connections-per-address) is reached, close some"
)


class HeadTooLargeError(Exception):
    """Stops the parser if the path or query is too long, or at the first header above the limit."""


class Phase(Enum):
    """The state of a connection, named after what it is waiting for."""

    HEAD = auto()
    """Waiting for the request line and headers. A new connection starts in this phase."""
    BODY = auto()
    RESPONSE = auto()
    """Waiting for the application to respond, or for the client to read the response."""
    IDLE = auto()
    """Waiting for the next request. uvicorn enforces the deadline of this phase."""
    TURN = auto()
    """Waiting for the worker to parse more of the received data. This phase has no deadline."""
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

    def __init__(self, max_connections: int, per_address: ConnectionsPerAddress) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.per_address = per_address
        self.turns = RoundRobin()
        self.read_buffer = memoryview(bytearray(READ_BYTES))
        """A read is copied from here immediately, so all connections share this buffer."""
        self.drain_now = False
        """Whether connections without a request are closed immediately when draining."""


class Cycle(RequestResponseCycle):
    """A request and its response. Sending ends when the kernel has accepted the whole response.

    The application can therefore detect that the client disconnected before it read the response.
    """

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.flow.write_paused:
            await self.flow.drain()


def unix_server(transport: asyncio.BaseTransport) -> tuple[str, None] | None:
    """Return our end of a connection to a Unix socket, as newer versions of uvicorn do. None for other sockets."""
    name = transport.get_extra_info("sockname")
    return (name, None) if isinstance(name, str) else None


class Connection(HttpToolsProtocol):
    """A client connection with deadlines and size limits, which serves one request at a time."""

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
        self.url, self.headers = b"", []  # before the first request, they are missing or None in the base class
        self.rejection: str | None = None
        """The reason why this connection is not served, or None."""
        self.unsized_bytes = 0
        """How many bytes of headers, or of a chunked body, have been received."""
        self.last_seen: tuple[Phase, RequestResponseCycle | None] | None = None
        """The phase and request at the last check."""
        self.seen_since = 0.0
        """When a check first saw this phase and request, in event loop time."""
        self._splitter = RequestSplitter()
        self._unparsed = b""
        """Received data that waits to be parsed. Reading stops until all of it is parsed."""

    @property
    def phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.timeout_keep_alive_task is not None:
            return Phase.IDLE
        if self._unparsed and self.flow.write_paused:
            return Phase.RESPONSE
        if self.cycle is None or self.cycle.response_complete:
            return Phase.TURN if self._unparsed else Phase.HEAD
        return Phase.BODY if self.cycle.more_body else Phase.RESPONSE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        self.server = self.server or unix_server(transport)
        transport.set_write_buffer_limits(0)  # the kernel already buffers responses
        state = self.server_state
        surplus = len(self.connections) - state.max_connections
        if surplus > 0:
            self.rejection = _TOO_MANY_CONNECTIONS
        surplus_of_address = state.per_address.add(self.address)
        if surplus_of_address > 0:
            self.rejection = _TOO_MANY_CONNECTIONS_OF_ADDRESS
            surplus = max(surplus, surplus_of_address)
        if surplus > MAX_SURPLUS_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.cycle is not None and self.flow.write_paused:
            self.cycle.disconnected = True
        super().connection_lost(exc)
        self._unparsed = b""
        self.server_state.per_address.remove(self.address)

    @property
    def address(self) -> str:
        """The address that counts for the limit of connections per address."""
        if self.client:
            return self.client[0]
        is_unix = self.server is not None and self.server[1] is None
        return UNIX_PEER if is_unix else ""  # unknown if the client has disconnected already

    def data_received(self, data: bytes) -> None:
        if self.rejection:
            # Respond only after data has arrived: closing a connection with unread data resets it, and the client would
            # lose the response.
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, ("Retry-After", RETRY_SECONDS), message=self.rejection)
        elif self._unparsed:  # uvicorn resumed reading because the application has read the body
            self._postpone(self._unparsed + data)
        elif self.server_state.turns.must_wait(len(data), self.loop.time()):
            self._postpone(data)
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse received data until a request is complete. Postpone the rest."""
        for _ in range(MAX_PIECES_PER_TURN):
            if self._is_busy:
                break
            is_sized = self._splitter.body_bytes_left > 0
            piece = self._splitter.next_piece(data)
            self._parse_piece(piece, is_sized=is_sized)
            if len(piece) == len(data) or self.transport.is_closing():
                return
            data = data[len(piece) :]
        self._postpone(data)

    @property
    def _is_busy(self) -> bool:
        """Whether the next request has to wait until the client has read the response to the current one."""
        cycle = self.cycle
        if cycle is None:
            return False
        return self.flow.write_paused if cycle.response_complete else not cycle.more_body

    def _parse_piece(self, piece: bytes, *, is_sized: bool) -> None:
        """Parse a piece of a request.

        Args:
            piece: a piece that contains parts of one request only.
            is_sized: whether it belongs to a body of known length. The application limits these.
        """
        previous = self.cycle
        is_head = previous is None or previous.response_complete
        if is_head or not is_sized:
            self.unsized_bytes += len(piece)
            if self.unsized_bytes > MAX_HEAD_BYTES:
                too_large = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if is_head else too_large)
                return
        super().data_received(piece)
        if self.cycle is not None and self.cycle is not previous:  # the piece ended with the last header
            self.unsized_bytes = 0
            if self.cycle.more_body:
                self._splitter.body_bytes_left = _content_length(self.headers)

    def _postpone(self, data: bytes) -> None:
        self._unparsed = data
        self.transport.pause_reading()
        self._unset_keepalive_if_required()
        if not self._is_busy:
            self.server_state.turns.add(self._take_turn)
        elif self.cycle is not None and _CLOSE in self.cycle.default_headers:
            # Also serve the received requests while draining. Only the last response closes the connection.
            self.cycle.default_headers = [header for header in self.cycle.default_headers if header != _CLOSE]

    def _take_turn(self) -> None:
        if not self._unparsed or self.transport.is_closing():
            return
        data, self._unparsed = self._unparsed, b""
        self._parse(data)
        if self._unparsed:
            return
        if self.server_state.drain_now and self.phase is Phase.HEAD:
            self.transport.close()
        else:
            self.transport.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        cycle.__class__ = Cycle  # uvicorn has created the object, and has no setting for its class
        super()._start_asgi_task(cycle, app)

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_TARGET_BYTES:
            raise HeadTooLargeError

    def on_header(self, name: bytes, value: bytes) -> None:
        # A copy of the base method, because a call would take longer than the method itself.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLargeError

    def send_400_response(self, msg: str) -> None:
        if len(self.url) > MAX_TARGET_BYTES:
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        elif len(self.headers) > MAX_HEADERS:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        self.unsized_bytes = 0
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            if not self._is_busy:  # otherwise, continue when the client has read the response
                self.server_state.turns.add(self._take_turn)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unparsed and not self._is_busy:
            self.server_state.turns.add(self._take_turn)

    def shutdown(self) -> None:
        """Close the connection after its current or next request, and after all requests that have been received.

        The client may already have sent its next request, which must be served. A connection without a request
        therefore stays open until its deadline, unless the worker has to drain now.
        """
        is_idle = self.phase in {Phase.HEAD, Phase.IDLE}
        if self._unparsed or (is_idle and not (self.server_state.drain_now and self.has_read_all())):
            return
        if self.cycle is not None and _CLOSE not in self.cycle.default_headers:
            self.cycle.default_headers = [*self.cycle.default_headers, _CLOSE]  # older uvicorn does not add it
        super().shutdown()

    def has_read_all(self) -> bool:
        """Return whether this process has read everything that it has received from the client."""
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return not poll.poll(0)

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
        if phase is Phase.BODY or (phase is Phase.HEAD and self.unsized_bytes):
            self.send_error(HTTPStatus.REQUEST_TIMEOUT)
        elif phase is Phase.HEAD:
            self.transport.close()
        else:
            self.transport.abort()

    def send_error(self, status: HTTPStatus, *headers: tuple[str, str], message: str | None = None) -> None:
        """Send an error response in place of the application's response, and close the connection."""
        response = http_error_response(status, headers, message)
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


def _content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the length of the body, or 0 if it is chunked. The parser has checked the header."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)
