"""A worker of ``mlapi serve``: uvicorn on the port that the supervisor holds.

It tells the supervisor that it serves, by a byte from time to time, the first when it is ready; and by another that it
drains, which it does when it is asked to, or the supervisor is gone.
"""

import asyncio
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
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
from mlapi.entrypoints.server.connections import IDLE, INTERVAL, Connection, Deadlines, State

APP = "mlapi.entrypoints.http:app"
SPARE = 100
"""File descriptors for what is not a connection: databases, files, the log."""


class Arguments(msgspec.Struct, kw_only=True, frozen=True):
    """What the supervisor tells a worker, as JSON. The three are file descriptors that are inherited."""

    listening: int
    supervised: int
    """Its end is that of the supervisor, or of his patience."""
    alive: int
    """Written to."""
    connections: int
    access_log: bool


class Server(uvicorn.Server):
    """Uvicorn with deadlines for its connections, which drains so that no request is cut.

    Args:
        config: uvicorn's.
        connections: at most.
        deadlines: of each connection.
        alive: called with ``.`` when it serves, and twice a second from then on, and with ``-`` when it drains.
        supervised: a file descriptor; when it ends, connections without a request are not waited for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        connections: int,
        deadlines: Deadlines | None = None,
        alive: Callable[[bytes], None] = lambda _: None,
        supervised: int | None = None,
    ) -> None:
        super().__init__(config)
        self.server_state: State = State(connections)
        self._deadlines = deadlines or Deadlines()
        self._alive = alive
        self._supervised = supervised
        self._looking: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        if self._supervised is not None:
            loop.add_reader(self._supervised, self._hurry, self._supervised)
        self._looking = loop.create_task(self._look())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._alive(b"-")
        # What comes on a connection that is open is answered, and is the last that comes on it.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await super().shutdown(sockets)

    def _hurry(self, supervised: int) -> None:
        """Drain, and close what has no request under way at once."""
        asyncio.get_running_loop().remove_reader(supervised)
        self.server_state.is_hurried = self.should_exit = True
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; but Ctrl-C reaches every process of a terminal, and it is the supervisor that decides."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self.should_exit:
                self._alive(b".")
            now = loop.time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)  # noqa: S101 - `config` says so
                connection.look(now, self._deadlines)
            await asyncio.sleep(INTERVAL)


def config(
    app: str | ASGIApp = APP, *, access_log: bool = True, logging: dict[str, Any] | None = None
) -> uvicorn.Config:
    """Return uvicorn's configuration for this service."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        access_log=access_log,
        log_config=logging,
        server_header=False,
        proxy_headers=False,  # whom to believe says http.trusted_proxies, and nobody else is
        timeout_keep_alive=IDLE,
        # A request that has begun is answered or over its deadlines by then: nothing is cut off.
        timeout_graceful_shutdown=round(Deadlines().longest),
    )


def connections_within_limits(wanted: int) -> int:
    """Return how many connections the system lets this process have, having asked for as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # then it is as it was: macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE))


def main(arguments: Arguments) -> None:
    """Serve until the supervisor asks to drain.

    Raises:
        SystemExit: 3 if the application refuses to start.
    """
    try:
        logging = log_config(load_settings().log_format)
    except MlapiError as error:
        sys.stderr.write(f"mlapi: {error}\n")
        sys.exit(STARTUP_FAILURE)

    def tell(news: bytes) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(arguments.alive, news)

    os.set_blocking(arguments.alive, False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is the supervisor's, wherever else it arrives
    server = Server(
        config(access_log=arguments.access_log, logging=logging),
        connections=connections_within_limits(arguments.connections),
        alive=tell,
        supervised=arguments.supervised,
    )
    server.run([socket.socket(fileno=arguments.listening)])


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Arguments))
