"""The arguments that the processes of ``mlapi serve`` pass to each other as JSON."""

import msgspec

from mlapi.entrypoints.logs import Format
from mlapi.entrypoints.server.unix_sockets import SocketFile

KEEP_ALIVE_SECONDS = 5
"""How long a connection stays open between requests, unless an option changes it."""


def extra_seconds(keep_alive_seconds: int) -> int:
    """Return how many more seconds than by default a draining worker may take.

    The worker keeps idle connections open for as long as clients expect: their next requests may be on the way.
    """
    return max(0, keep_alive_seconds - KEEP_ALIVE_SECONDS)


class WorkerOptions(msgspec.Struct, kw_only=True, frozen=True):
    """The options of ``mlapi serve`` that all workers share."""

    max_connections: int
    connections_per_address: int | None = None
    """By default, a tenth of ``max_connections``."""
    access_log: bool = True
    keep_alive_seconds: int = KEEP_ALIVE_SECONDS
    root_path: str = ""
    is_inherited: bool = False
    """Whether the parent process of the service has opened the listeners."""


class WorkerArguments(msgspec.Struct, kw_only=True, frozen=True):
    """The arguments of a worker. It inherits the file descriptors from the supervisor."""

    listener_fds: list[int]
    supervisor_fd: int
    """A Unix socket for orders."""
    status_fd: int
    """The write end of a pipe for status reports."""
    options: WorkerOptions


class SupervisorArguments(msgspec.Struct, kw_only=True, frozen=True):
    """The arguments of the supervisor. It inherits the file descriptors from the command."""

    listener_fds: list[list[int]]
    """The listeners of each worker: one for each address."""
    socket_file: SocketFile | None = None
    """The file of the Unix socket, if there is one."""
    log_format: Format
    """The log format of the supervisor. Each worker reads the configuration itself."""
    worker: WorkerOptions
