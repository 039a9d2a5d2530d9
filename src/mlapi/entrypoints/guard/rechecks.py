"""Check the users of open WebSockets and streams again, and end the connections of users who have lost access."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from mlapi.domain.credentials import AUTHENTICATION_ERRORS
from mlapi.domain.errors import MlapiError
from mlapi.domain.users import User
from mlapi.entrypoints.http.middleware import error_log
from mlapi.entrypoints.wire.error_responses import ERRORS

POLICY_VIOLATION = 1008
"""The code that the guard sends when it closes a WebSocket (RFC 6455, 7.4.1)."""
GRACE_SECONDS = 1.0
"""How long the application may finish after its stream has been ended, before it is canceled."""
_MAX_CHECKS = 200  # per query, which runs on the event loop if the database is an SQLite file

_logger = logging.getLogger("mlapi")


class Rechecks:
    """Checks the credentials of open connections at an interval.

    All connections of an event loop are checked together, and each credential only once. If the database is
    unavailable, connections stay open.

    Args:
        interval_seconds: the time between two checks.
        check: checks a credential, like `AsyncGuard.identify`.
    """

    def __init__(self, interval_seconds: float, check: Callable[[str], Awaitable[User]]) -> None:
        if not 0 < interval_seconds < float("inf"):
            raise ValueError("recheck_seconds must be a positive number of seconds, or None")
        self._interval_seconds = interval_seconds
        self._check = check
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, set[_Connection]] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, credential: str) -> None:
        """Call an application for a request or a WebSocket with this credential."""
        kind = _WebSocket if scope["type"] == "websocket" else _Stream
        await kind(self, credential, receive, send).run(app, scope)

    def add(self, connection: "_Connection") -> None:
        loop = asyncio.get_running_loop()
        connections = self._open.get(loop)
        if connections is None:
            self._open[loop] = connections = set()
            self._schedule(loop)
        connections.add(connection)

    def discard(self, connection: "_Connection") -> None:
        self._open.get(asyncio.get_running_loop(), set()).discard(connection)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        # Use an empty context: the deadline, the request id and other variables of this request do not apply to it.
        loop.call_later(self._interval_seconds, self._start, loop, context=Context())

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._open[loop]:
            del self._open[loop]
            return
        task = loop.create_task(self._recheck(loop))
        self._tasks.add(task)  # event loops keep only weak references
        task.add_done_callback(self._tasks.discard)

    async def _recheck(self, loop: asyncio.AbstractEventLoop) -> None:
        opened = self._open[loop]
        connections_by_credential: defaultdict[str, list[_Connection]] = defaultdict(list)
        for connection in opened:
            connections_by_credential[connection.credential].append(connection)
        credentials = list(connections_by_credential)
        try:
            for first in range(0, len(credentials), _MAX_CHECKS):
                checked = credentials[first : first + _MAX_CHECKS]
                results = await asyncio.gather(*map(self._check, checked), return_exceptions=True)
                for credential, result in zip(checked, results, strict=True):
                    # Some connections may have been closed during the check.
                    self._apply(result, opened.intersection(connections_by_credential[credential]))
        finally:
            self._schedule(loop)

    def _apply(self, result: User | BaseException, connections: set["_Connection"]) -> None:
        if isinstance(result, AUTHENTICATION_ERRORS):
            for connection in connections:
                connection.end(result)
        elif isinstance(result, BaseException):
            reason = str(result) if isinstance(result, MlapiError) else type(result).__name__
            error_log.log(f"guard: open connections could not be checked again and stay open: {reason}")


class _Connection(ABC):
    """A request or a WebSocket. The application calls ``receive`` and ``send``, `Rechecks` calls ``end``.

    Attributes:
        credential: the credential that opened the connection.
        error: why the guard has ended the connection, or None.
    """

    def __init__(self, rechecks: Rechecks, credential: str, receive: Receive, send: Send) -> None:
        self.credential = credential
        self.error: MlapiError | None = None
        self._rechecks = rechecks
        self._receive = receive
        self._send = send
        self._receiving: set[asyncio.Timeout] = set()

    @abstractmethod
    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Call the application."""

    @property
    def reason(self) -> str:
        return "" if self.error is None else ERRORS[type(self.error)].message or str(self.error)

    def end(self, error: MlapiError) -> None:
        """End the connection. The application receives a disconnect, and can send nothing any more."""
        self.error = error
        self._rechecks.discard(self)
        now = asyncio.get_running_loop().time()
        for receiving in self._receiving:
            receiving.reschedule(now)
        _logger.info("guard: ended an open connection: %s", self.reason)

    async def _receive_until_end(self) -> Message | None:
        """Return the next message, or None as soon as the connection has been ended."""
        if self.error is not None:
            return None
        try:
            async with asyncio.timeout(None) as receiving:
                self._receiving.add(receiving)
                try:
                    return await self._receive()
                finally:
                    self._receiving.discard(receiving)
        except TimeoutError:
            if not receiving.expired():
                raise
            return None

    def _raise_if_ended(self) -> None:
        if self.error is not None:  # after a disconnect, servers raise an OSError: ASGI specification 2.4
            raise ConnectionAbortedError(f"the guard has ended this connection: {self.reason}")


class _Stream(_Connection):
    """A request. The checks begin at the start of the response, and stop at the end of its body.

    If the guard ends the request, the application's call returns before the response is complete, so the server cuts
    the connection.
    """

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            async with asyncio.timeout(None) as self._running:
                try:
                    await app(scope, self.receive, self.send)
                finally:
                    self._rechecks.discard(self)
        except BaseException as error:
            if self.error is None or not _is_disconnect(error):
                raise

    def end(self, error: MlapiError) -> None:
        super().end(error)
        self._running.reschedule(asyncio.get_running_loop().time() + GRACE_SECONDS)

    async def receive(self) -> Message:
        return await self._receive_until_end() or {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self._raise_if_ended()
        if message["type"] == "http.response.start":
            self._rechecks.add(self)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._rechecks.discard(self)
        await self._send(message)


class _WebSocket(_Connection):
    """A WebSocket. The checks begin when the application accepts the WebSocket, and stop when it is closed."""

    _closing: "asyncio.Task[None] | None" = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            if self.error is None or not _is_disconnect(error):
                raise
        finally:
            self._rechecks.discard(self)
            if self._closing is not None:
                await self._closing

    def end(self, error: MlapiError) -> None:
        super().end(error)
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        with suppress(OSError, RuntimeError):  # the client has disconnected
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": self.reason})

    async def receive(self) -> Message:
        message = await self._receive_until_end()
        return message or {"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": self.reason}

    async def send(self, message: Message) -> None:
        self._raise_if_ended()
        if message["type"] == "websocket.close":
            self._rechecks.discard(self)
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._rechecks.add(self)


def _is_disconnect(error: BaseException) -> bool:
    """Return whether an application raised an error only because the guard has ended its connection.

    An application that streams in a task group raises an exception group. A `TimeoutError`, which is an `OSError`,
    means that the application did not finish in time.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_disconnect, error.exceptions))
    return isinstance(error, OSError | ClientDisconnect | WebSocketDisconnect)
