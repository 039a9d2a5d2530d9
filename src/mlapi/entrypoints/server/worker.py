"""A worker process of ``mlapi serve``, which runs uvicorn on a listener that it inherits from the supervisor.

It starts to listen when the application is ready. It reports its status to the supervisor through a pipe, and receives
orders through a Unix socket. It drains when it is ordered to, or when the supervisor exits.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import getLogger
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp

from mlapi.config import load_settings
from mlapi.domain.addresses import Network
from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.logs import log_config
from mlapi.entrypoints.server.addresses import ConnectionsPerAddress, default_per_address
from mlapi.entrypoints.server.arguments import KEEP_ALIVE_SECONDS, WorkerArguments, extra_seconds
from mlapi.entrypoints.server.connections import CHECK_INTERVAL_SECONDS, Connection, Deadlines, State
from mlapi.entrypoints.server.listeners import BACKLOG, drain_backlog, start_listening
from mlapi.entrypoints.server.messages import STARTUP_FAILURE, Order, Status
from mlapi.entrypoints.server.open_files import LISTENERS_PER_ADDRESS, limit_connections
from mlapi.entrypoints.server.reader import BufferedReader

APP = "mlapi.entrypoints.http:app"
_logger = getLogger("mlapi")
RECEIVE_BUFFER_BYTES = 32 * 1024
"""The size of the kernel's receive buffer for each connection. Linux doubles it.

By default, the buffer can grow to many megabytes, so a thousand connections could exhaust the kernel's memory for TCP.
The kernel would then drop packets of other clients.
"""
SEND_BUFFER_BYTES = 64 * 1024
"""How much of a response the kernel keeps for each connection until the client reads it. Linux doubles this too.

By default, this can also grow to many megabytes. The server keeps only a reference to the rest of the response.
"""


class Server(uvicorn.Server):
    """A uvicorn server that enforces connection deadlines and drains without losing a request.

    Args:
        config: the uvicorn configuration.
        max_connections: the maximum number of connections.
        connections_per_address: the maximum number of connections from one address; by default all of them.
        trusted_proxies: addresses that may use all connections.
        deadlines: the deadlines of each connection.
        report: called with each status report.
        supervisor: a Unix socket for orders. Without it, the server drains on SIGTERM.
        is_inherited: whether the listeners belong to the parent process of the service, which keeps them open.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        max_connections: int,
        connections_per_address: int | None = None,
        trusted_proxies: Sequence[Network] = (),
        deadlines: Deadlines | None = None,
        report: Callable[[Status], None] = lambda _: None,
        supervisor: socket.socket | None = None,
        is_inherited: bool = False,
    ) -> None:
        super().__init__(config)
        self.server_state: State = State(
            max_connections,
            ConnectionsPerAddress(connections_per_address or max_connections, trusted_proxies),
        )
        self._deadlines = deadlines or Deadlines()
        self._report = report
        self._supervisor = supervisor
        self._is_inherited = is_inherited
        self._check_task: asyncio.Task[None] | None = None
        self._starting_connections: set[asyncio.Task[Any]] = set()
        self._has_successor = False
        """True if another worker accepts connections from the same listener."""
        self._must_close_idle = False
        """True if connections without a request are closed as soon as no more connections are accepted."""
        self._is_drained = False
        """True if no more connections are accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # start the application, without listening
        try:
            for listener in sockets or []:
                # Other workers may share the socket. If a copy were blocking, all copies would be, and a worker that
                # loses the race for a connection would wait for the next connection.
                listener.settimeout(0)
                # Accepted connections inherit the buffer sizes.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                start_listening(listener)
                self.servers += [
                    await self._loop.create_server(self._create_connection, sock=copy, backlog=BACKLOG)
                    for copy in (listener, *[listener.dup() for _ in range(LISTENERS_PER_ADDRESS - 1)])
                ]
        except OSError as error:
            _logger.error("cannot listen: %s; change --host or --port", error.strerror)  # noqa: TRY400 - one line
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        if self._supervisor is not None:
            self._loop.add_reader(self._supervisor, self._read_order, self._supervisor)
        self._check_task = self._loop.create_task(self._check_connections())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Requests on open connections are still served. Tell the client to send no more requests on its connection.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        if not self._has_successor:
            drains = [drain_backlog(listener, is_shared=self._is_inherited) for listener in sockets or []]
            await asyncio.gather(*drains)
        self._is_drained = True
        self._report(Status.DRAINING)
        self.server_state.drain_now |= self._must_close_idle
        await super().shutdown(sockets)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _create_connection(self) -> asyncio.BufferedProtocol:
        return BufferedReader(self.config, self.server_state, self.lifespan.state)

    def _read_order(self, supervisor: socket.socket) -> None:
        order, descriptors, _, _ = socket.recv_fds(supervisor, 1, 1)
        if order == Order.SERVE_CONNECTION:
            for descriptor in descriptors:  # none if too many files are open
                self._serve_connection(socket.socket(fileno=descriptor))
            return
        self.should_exit = True
        self._has_successor |= order == Order.LEAVE
        if not order:  # the supervisor exited or closed its end
            self._loop.remove_reader(supervisor)
            self._close_idle()

    def _serve_connection(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._create_connection, connection))
        self._starting_connections.add(task)
        task.add_done_callback(self._starting_connections.discard)

    def _close_idle(self) -> None:
        """Close connections without a request, once no more connections are accepted."""
        self._must_close_idle = True
        if self._is_drained:
            self.server_state.drain_now = True
            for connection in list(self.server_state.connections):
                connection.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ask the supervisor for a replacement on SIGTERM. Ignore SIGINT, which Ctrl-C sends to every process.

        A worker that is not serving yet exits immediately.
        """
        if sig == signal.SIGINT:
            return
        if not self.started:
            os._exit(0)
        if self._supervisor is None:
            super().handle_exit(sig, frame)
        else:
            self._report(Status.REPLACE_ME)

    async def _check_connections(self) -> None:
        """Enforce deadlines and report to the supervisor at regular intervals."""
        loop = asyncio.get_running_loop()
        while True:
            if not self.should_exit:
                self._report(Status.SERVING)
            now = loop.time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)  # noqa: S101 - set as the protocol class in `config`
                connection.enforce_deadline(now, self._deadlines)
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)


def config(
    app: str | ASGIApp = APP,
    *,
    access_log: bool = True,
    logging: dict[str, Any] | None = None,
    root_path: str = "",
    keep_alive_seconds: int = KEEP_ALIVE_SECONDS,
) -> uvicorn.Config:
    """Return the uvicorn configuration for this service."""
    return uvicorn.Config(
        app,
        http=BufferedReader,  # type: ignore[arg-type]  # uvicorn passes it to the event loop, which accepts both kinds
        ws="none",
        lifespan="on",
        access_log=access_log,
        log_config=logging,
        server_header=False,
        proxy_headers=False,  # mlapi reads them itself, and only from http.trusted_proxies
        root_path=root_path,
        timeout_keep_alive=keep_alive_seconds,
        # By then, every request has been served or has exceeded its deadlines, so this timeout interrupts no request.
        timeout_graceful_shutdown=round(Deadlines().max_request_seconds) + extra_seconds(keep_alive_seconds),
    )


def main(arguments: WorkerArguments) -> None:
    """Serve until the supervisor asks the worker to drain.

    Raises:
        SystemExit: with code 3 if the application cannot start.
    """
    try:
        settings = load_settings()
        logging = log_config(settings.log_format)
        trusted_proxies = settings.http.trusted_networks
    except MlapiError as error:
        sys.stderr.write(f"mlapi: {error}\n")
        sys.exit(STARTUP_FAILURE)

    def report(status: Status) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(arguments.status_fd, status)

    os.set_blocking(arguments.status_fd, False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # only the supervisor handles it, but it may be sent to all processes
    options = arguments.options
    max_connections = limit_connections(options.max_connections, len(arguments.listener_fds))
    server = Server(
        config(
            access_log=options.access_log,
            logging=logging,
            root_path=options.root_path,
            keep_alive_seconds=options.keep_alive_seconds,
        ),
        max_connections=max_connections,
        connections_per_address=options.connections_per_address or default_per_address(max_connections),
        trusted_proxies=trusted_proxies,
        report=report,
        supervisor=socket.socket(fileno=arguments.supervisor_fd),
        is_inherited=options.is_inherited,
    )
    server.run([socket.socket(fileno=descriptor) for descriptor in arguments.listener_fds])


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=WorkerArguments))
