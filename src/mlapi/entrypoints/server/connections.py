"""Connections to a worker: each has its deadlines, and there is a bound to how many.

What a client has done so far is read off uvicorn's own state twice a second, so that a request costs nothing for it.
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
from mlapi.entrypoints.wire.responses import http_error_response

IDLE = 5
"""Seconds that a connection may be kept without a request."""
HEAD_SIZE = 64 * 1024
"""Bytes of a request's line and headers, as h11 has it."""
SURPLUS = 50
"""Connections beyond the bound that are answered, and not just cut off."""
INTERVAL = 0.5
"""Seconds between two looks at all connections: 8,000 of them take some 5 ms."""


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()
    """A request's head; or nothing has come at all."""
    BODY = auto()
    ANSWER = auto()
    """Ours, or that the client takes it."""
    IDLE = auto()
    """The next request. Uvicorn's own deadline."""
    CLOSING = auto()
    """That the client takes the rest."""


@attrs.frozen(kw_only=True)
class Deadlines:
    """Seconds that a connection may be in a phase, from its first byte to its last: a slow client gains no time."""

    head: float = 10.0
    body: float = 15.0
    answer: float = 12.0
    """More than any of ours takes, which is 10: what is over is a client that does not read it."""
    closing: float = 5.0

    @property
    def longest(self) -> float:
        """Seconds that a request may take from its first byte to its answer's last."""
        return self.head + self.body + self.answer

    def of(self, phase: Phase) -> float | None:
        return {
            Phase.HEAD: self.head,
            Phase.BODY: self.body,
            Phase.ANSWER: self.answer,
            Phase.CLOSING: self.closing,
        }.get(phase)


class State(ServerState):
    """What the connections of a worker share."""

    def __init__(self, bound: int) -> None:
        super().__init__()
        self.bound = bound
        self.is_hurried = False
        """Whether connections without a request are closed at once when the worker drains."""


class Connection(HttpToolsProtocol):
    """A connection to a worker."""

    server_state: State
    transport: asyncio.Transport
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # its base begins with None too
    """The last request whose head is complete, and its answer."""

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.is_surplus = False
        self.head_size = 0
        self.seen: tuple[Phase, RequestResponseCycle | None] | None = None
        self.since = 0.0
        """When it was seen so for the first time."""

    @property
    def phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.timeout_keep_alive_task is not None:
            return Phase.IDLE
        if self.cycle is None or self.cycle.response_complete:
            return Phase.HEAD
        return Phase.BODY if self.cycle.more_body else Phase.ANSWER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # its base's
        super().connection_made(transport)
        surplus = len(self.connections) - self.server_state.bound
        self.is_surplus = surplus > 0
        if surplus > SURPLUS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.is_surplus:  # what the client has sent must be read, or he does not get to read the answer
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, ("Retry-After", str(IDLE)))
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # the head is not complete, or this is it no more
            self.head_size += len(data)
            if self.head_size > HEAD_SIZE and not self.transport.is_closing():
                self.refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self.head_size = 0

    def shutdown(self) -> None:
        """Answer the request under way, or the one that may be on its way, and close then.

        A client sends what he sends on a connection that was open when he looked. So one without a request is left to
        its deadlines, and what comes on it is answered, unless there is no time for that.
        """
        if self.phase in {Phase.HEAD, Phase.IDLE} and not self.server_state.is_hurried:
            return
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # who has not read the last answer for so long does not read
        else:
            super().timeout_keep_alive_handler()

    def look(self, now: float, deadlines: Deadlines) -> None:
        """End it if it will be over its deadline at the next look."""
        phase = self.phase
        seen = phase, self.cycle
        if seen != self.seen:
            self.seen, self.since = seen, now
            return
        deadline = deadlines.of(phase)
        # It began up to an interval before it was seen, the next look is one later, and a crowd takes its time.
        if deadline is None or now - self.since < deadline - 3 * INTERVAL:
            return
        if phase is Phase.BODY or (phase is Phase.HEAD and self.head_size):
            self.refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif phase is Phase.HEAD:
            self.transport.close()
        else:
            self.transport.abort()

    def refuse(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        """Answer instead of the application, and close."""
        answer = http_error_response(status, headers)
        more = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        lines = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(answer.body)),
            (b"connection", b"close"),
            *more,
            *HEADERS,
        ]
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            head = b"".join(b"%s: %s\r\n" % line for line in lines)
            self.transport.write(STATUS_LINE[status] + head + b"\r\n" + answer.body)
        self.transport.close()
