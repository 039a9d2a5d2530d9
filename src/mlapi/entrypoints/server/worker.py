"""A worker process of ``mlapi serve``, which runs uvicorn on a listener that it inherits from the supervisor.

The worker reports its status to the supervisor through a pipe: ``.`` when it is ready and at regular intervals while it
is serving, and ``-`` when it starts to drain. It drains on SIGTERM, and when the supervisor exits or closes the other
pipe.
"""

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from mlapi.config import load_settings
from mlapi.domain.errors import MlapiError
from mlapi.entrypoints.logs import log_config
from mlapi.entrypoints.server.addresses import ConnectionsPerAddress, default_per_address
from mlapi.entrypoints.server.connections import (
    CHECK_INTERVAL_SECONDS,
    IDLE_SECONDS,
    BufferedReader,
    Connection,
    Deadlines,
    State,
)
from mlapi.entrypoints.wire.client import Network

APP = "mlapi.entrypoints.http:app"
RESERVED_FILES = 100
"""File descriptors that are reserved for the database, other files and the log."""


class Arguments(msgspec.Struct, kw_only=True, frozen=True):
    """The arguments of a worker, passed as JSON. It inherits the file descriptors from the supervisor."""

    listener_fd: int
    supervisor_fd: int
    """The read end of a pipe. When the pipe is closed, the worker drains now."""
    status_fd: int
    """The write end of a pipe for status reports."""
    max_connections: int
    connections_per_address: int | None = None
    """By default, a tenth of the maximum."""
    access_log: bool


class Server(uvicorn.Server):
    """A uvicorn server that enforces connection deadlines and drains without losing a request.

    Args:
        config: the uvicorn configuration.
        max_connections: the maximum number of connections.
        connections_per_address: the maximum number of connections from one address; by default all of them.
        trusted_proxies: addresses that may use all connections.
        deadlines: the deadlines of each connection.
        report: called with ``.`` when the server is ready and at each check while it is serving, and with ``-`` when it
            starts to drain.
        supervisor_fd: the read end of a pipe. When the pipe is closed, the server drains, and closes connections
            without a request immediately.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        max_connections: int,
        connections_per_address: int | None = None,
        trusted_proxies: Sequence[Network] = (),
        deadlines: Deadlines | None = None,
        report: Callable[[bytes], None] = lambda _: None,
        supervisor_fd: int | None = None,
    ) -> None:
        super().__init__(config)
        self.server_state: State = State(
            max_connections,
            ConnectionsPerAddress(connections_per_address or max_connections, trusted_proxies),
        )
        self._deadlines = deadlines or Deadlines()
        self._report = report
        self._supervisor_fd = supervisor_fd
        self._check_task: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        if self._supervisor_fd is not None:
            loop.add_reader(self._supervisor_fd, self._drain_now, self._supervisor_fd)
        self._check_task = loop.create_task(self._check_connections())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._report(b"-")
        # Requests on open connections are still served. Tell the client to send no more requests on its connection.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await super().shutdown(sockets)

    def _drain_now(self, supervisor_fd: int) -> None:
        """Drain, and close connections without a request immediately."""
        asyncio.get_running_loop().remove_reader(supervisor_fd)
        self.server_state.drain_now = self.should_exit = True
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on SIGTERM. Ignore SIGINT, which Ctrl-C sends to every process: the supervisor handles it."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    async def _check_connections(self) -> None:
        """Enforce deadlines and report to the supervisor at regular intervals."""
        loop = asyncio.get_running_loop()
        while True:
            if not self.should_exit:
                self._report(b".")
            now = loop.time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)  # noqa: S101 - set as the protocol class in `config`
                connection.enforce_deadline(now, self._deadlines)
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)


def config(
    app: str | ASGIApp = APP, *, access_log: bool = True, logging: dict[str, Any] | None = None
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
        timeout_keep_alive=IDLE_SECONDS,
        # By then, every request has been served or has exceeded its deadlines, so this timeout interrupts no request.
        timeout_graceful_shutdown=round(Deadlines().max_request_seconds),
    )


def limit_connections(wanted: int) -> int:
    """Raise the limit of open files to the maximum, and return how many of the wanted connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS does not allow the hard limit that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - RESERVED_FILES))


def main(arguments: Arguments) -> None:
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

    def report(status: bytes) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(arguments.status_fd, status)

    os.set_blocking(arguments.status_fd, False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # only the supervisor handles it, but it may be sent to all processes
    max_connections = limit_connections(arguments.max_connections)
    server = Server(
        config(access_log=arguments.access_log, logging=logging),
        max_connections=max_connections,
        connections_per_address=arguments.connections_per_address or default_per_address(max_connections),
        trusted_proxies=trusted_proxies,
        report=report,
        supervisor_fd=arguments.supervisor_fd,
    )
    server.run([socket.socket(fileno=arguments.listener_fd)])


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Arguments))
