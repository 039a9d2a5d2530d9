"""A worker process of ``mlapi serve``, as the supervisor sees it."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum

import attrs

from mlapi.entrypoints.server.arguments import extra_seconds
from mlapi.entrypoints.server.messages import Order

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
"""The signals that the supervisor handles."""

Listeners = Sequence[socket.socket]
"""The listeners of one worker: one for each address."""
Command = Callable[[Sequence[int], int, int], Sequence[str]]
"""A function that returns the command line of a worker. The worker inherits the file descriptors in its arguments:

1. The listeners.
2. A Unix socket for orders of the supervisor.
3. The write end of a pipe for the status of the worker.
"""


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long the supervisor waits for a worker."""

    check_seconds: float = 1.0
    """Between two checks for workers that have timed out."""
    start_seconds: float = 300.0
    """Until the worker starts to serve. Upgrading the schema of a large SQLite database can take this long."""
    silence_seconds: float = 30.0
    """Between two status reports while the worker is serving."""
    drain_seconds: float = 45.0
    """Until a draining worker exits. This is longer than the sum of all connection deadlines."""
    abort_seconds: float = 5.0
    """Until a worker that has to drain while it is starting exits."""
    retry_seconds: float = 1.0
    """The delay before another attempt if a worker failed to start. It doubles with each failure."""
    max_retry_seconds: float = 30.0
    backlog_seconds: float = 5.0
    """How long new connections wait if no worker is serving. Then they are refused."""

    @classmethod
    def for_keep_alive(cls, keep_alive_seconds: int) -> "Timeouts":
        """Return timeouts that let a draining worker keep its idle connections open."""
        defaults = cls()
        return attrs.evolve(defaults, drain_seconds=defaults.drain_seconds + extra_seconds(keep_alive_seconds))


class WorkerState(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Worker:
    """A worker process, its socket for orders and its status pipe.

    Raises:
        OSError: if the process cannot be started.
    """

    def __init__(self, command: Command, listeners: Listeners, timeouts: Timeouts) -> None:
        with ExitStack() as on_error, ExitStack() as always:
            self._orders, worker_orders = socket.socketpair()
            on_error.callback(self._orders.close)
            always.callback(worker_orders.close)
            self.status_pipe, status_fd = os.pipe()
            on_error.callback(os.close, self.status_pipe)
            always.callback(os.close, status_fd)
            listener_fds = [listener.fileno() for listener in listeners]
            with _terminal_signals_blocked():
                self._process = subprocess.Popen(  # noqa: S603 - runs a module of this package
                    command(listener_fds, worker_orders.fileno(), status_fd),
                    pass_fds=[*listener_fds, worker_orders.fileno(), status_fd],
                    stdin=subprocess.DEVNULL,
                )
            on_error.pop_all()
        self._orders.settimeout(0)
        self.listeners = listeners
        self.pid = self._process.pid
        self.state = WorkerState.STARTING
        self.is_outdated = False
        """True if this worker has to be replaced."""
        self._timeouts = timeouts
        self._seconds_left = timeouts.start_seconds
        """Decremented by each check. A clock would also count time during which the machine was suspended."""
        self._is_aborted = False
        """True if the worker was told to drain while it was starting."""

    def mark_serving(self) -> None:
        if self.state is not WorkerState.DRAINING:
            self.state = WorkerState.SERVING
            self._seconds_left = self._timeouts.silence_seconds
        elif self._is_aborted:  # it was already serving, and its report was on the way
            self._is_aborted = False
            self._seconds_left = self._timeouts.drain_seconds

    def mark_draining(self) -> None:
        if self.state is not WorkerState.DRAINING:
            self._is_aborted = self.state is WorkerState.STARTING
            self._seconds_left = self._timeouts.abort_seconds if self._is_aborted else self._timeouts.drain_seconds
            self.state = WorkerState.DRAINING

    def stop(self) -> None:
        """Let the worker serve waiting and open connections, then exit. A worker that is starting exits immediately."""
        self.mark_draining()
        self._send(Order.STOP)
        if self._is_aborted:
            self._process.terminate()

    def leave(self) -> None:
        """Let the worker serve its open connections, then exit. Its successor accepts all others."""
        self.mark_draining()
        self._send(Order.LEAVE)

    def serve(self, connection: socket.socket) -> bool:
        """Pass a connection to the worker. Return False if the worker does not take it."""
        return self._send(Order.SERVE_CONNECTION, connection.fileno())

    def drain_now(self) -> None:
        """Let the worker finish only the requests that it has already received."""
        self._orders.close()

    def kill(self) -> None:
        self._process.kill()

    def timed_out(self) -> bool:
        """Return whether the worker has spent too much time in its current state. Call this once per check."""
        self._seconds_left -= self._timeouts.check_seconds
        return self._seconds_left < 0

    def reap(self) -> int:
        """Release the resources of an exited worker and return its exit code."""
        self.drain_now()
        os.close(self.status_pipe)
        return self._process.wait()

    def _send(self, order: Order, *descriptors: int) -> bool:
        try:
            socket.send_fds(self._orders, [order], descriptors)
        except OSError:  # the worker has exited, or does not read its orders
            return False
        return True


@contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGHUP in the processes that this block starts. A terminal sends them to all processes.

    Only the supervisor handles them. A worker could not handle them while it is starting.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def describe_exit(exit_code: int) -> str:
    """Describe how a process ended, such as ``exit code 3`` or ``SIGKILL``."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"
