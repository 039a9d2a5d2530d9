"""The parent process of ``mlapi serve``, which owns the port and starts, monitors and restarts the workers.

It does not read requests or open the database.

Each worker has its own listener: a socket bound to the same address as the others. The kernel distributes new
connections evenly among the listeners. With a single shared socket, the worker that wakes up first would accept a whole
burst of connections, and they would all stay with it.

- SIGHUP replaces each worker with a new one, which loads the current code and configuration. The port stays open and no
  request is lost.
- SIGTERM drains the workers, then exits.
- SIGINT drains the workers, but closes connections without a request immediately. A second SIGINT kills the workers.
"""

import json
import logging.config
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum

import attrs

from mlapi.entrypoints.http.metrics import FOLDER_VARIABLE
from mlapi.entrypoints.logs import Format, log_config

_logger = logging.getLogger("mlapi")

CHECK_INTERVAL_SECONDS = 1.0
"""The interval between checks for workers that have timed out."""

Command = Callable[[int, int, int], Sequence[str]]
"""A function that returns the command line of a worker. The worker inherits the file descriptors in its arguments:

1. The listener.
2. The read end of a pipe. It is closed when the supervisor exits or the worker has to drain now.
3. The write end of a pipe. The worker sends ``.`` while it is serving and ``-`` when it starts to drain.
"""


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long the supervisor waits for a worker."""

    start_seconds: float = 300.0
    """Until the worker starts to serve. Upgrading the schema of a large SQLite database can take this long."""
    silence_seconds: float = 30.0
    """Between two status reports while the worker is serving."""
    drain_seconds: float = 45.0
    """Until a draining worker exits. This is longer than the sum of all connection deadlines."""
    retry_seconds: float = 1.0
    """The delay before another attempt if a worker failed to start."""


class WorkerState(Enum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class _Worker:
    """A worker process and its pipes."""

    def __init__(self, command: Command, listener: socket.socket, timeouts: Timeouts) -> None:
        self._supervisor_pipe: int | None
        supervisor_fd, self._supervisor_pipe = os.pipe()
        self.status_pipe, status_fd = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - runs a module of this package
                command(listener.fileno(), supervisor_fd, status_fd),
                pass_fds=(listener.fileno(), supervisor_fd, status_fd),
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(supervisor_fd)
            os.close(status_fd)
        self.listener = listener
        self.pid = self._process.pid
        self.state = WorkerState.STARTING
        self.is_outdated = False
        """True if a restart was requested and this worker has to be replaced."""
        self._timeouts = timeouts
        self._seconds_left = timeouts.start_seconds
        """Decremented by each check. A clock would also count time during which the machine was suspended."""

    def mark_serving(self) -> None:
        if self.state is not WorkerState.DRAINING:
            self.state = WorkerState.SERVING
            self._seconds_left = self._timeouts.silence_seconds

    def mark_draining(self) -> None:
        if self.state is not WorkerState.DRAINING:
            self.state = WorkerState.DRAINING
            self._seconds_left = self._timeouts.drain_seconds

    def drain(self) -> None:
        """Let the worker finish its requests, including new ones on open connections."""
        self.mark_draining()
        self._process.terminate()

    def drain_now(self) -> None:
        """Let the worker finish only the requests that it has already received."""
        if self._supervisor_pipe is not None:
            os.close(self._supervisor_pipe)
            self._supervisor_pipe = None

    def kill(self) -> None:
        self._process.kill()

    def timed_out(self) -> bool:
        """Return whether the time for the current state has run out. Call this once per check."""
        self._seconds_left -= CHECK_INTERVAL_SECONDS
        return self._seconds_left < 0

    def reap(self) -> int:
        """Release the resources of an exited worker and return its exit code."""
        self.drain_now()
        os.close(self.status_pipe)
        return self._process.wait()


class Supervisor:
    """Keeps one worker running for each listener until a signal ends the service.

    Args:
        listeners: sockets that are bound to the same address. The supervisor closes them when it shuts down.
        command: returns the command line of a worker.
        timeouts: how long to wait for a worker.
    """

    def __init__(self, listeners: Sequence[socket.socket], command: Command, timeouts: Timeouts | None = None) -> None:
        self._listeners = listeners
        self._command = command
        self._timeouts = timeouts or Timeouts()
        self._workers: list[_Worker] = []
        self._has_served = False
        """True after a worker has started successfully."""
        self._next_start_at = 0.0
        """Do not start a worker before this monotonic time."""
        self._exit_code: int | None = None
        """None until shutdown begins."""
        self._signals, self._signal_pipe = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)

    def send_signal(self, signal_number: int) -> None:
        """Queue SIGHUP, SIGTERM or SIGINT. Safe to call from signal handlers and from other threads."""
        os.write(self._signal_pipe, bytes([signal_number]))

    def run(self) -> int:
        """Run until all workers have exited.

        Returns:
            The exit code: 0 after a signal, or non-zero if the first worker failed to start.
        """
        next_check = time.monotonic() + CHECK_INTERVAL_SECONDS
        while self._exit_code is None or self._workers:
            self._start_missing_worker()
            for key, _ in self._selector.select(CHECK_INTERVAL_SECONDS):
                if key.fd == self._signals:
                    for signal_number in os.read(self._signals, 100):
                        self._handle_signal(signal_number)
                else:
                    self._read_status(key.data)
            if time.monotonic() > next_check:
                next_check = time.monotonic() + CHECK_INTERVAL_SECONDS
                self._kill_timed_out_workers()
        self._selector.close()
        os.close(self._signals)
        os.close(self._signal_pipe)
        return self._exit_code

    def _handle_signal(self, signal_number: int) -> None:
        if signal_number == signal.SIGHUP:
            _logger.info("restarting: replacing each worker with a new one")
            for worker in self._workers:
                worker.is_outdated = True
            return
        is_repeated = self._exit_code is not None
        self._shut_down(0)
        if signal_number == signal.SIGINT:
            for worker in self._workers:
                worker.drain_now()
                if is_repeated:
                    worker.kill()

    def _shut_down(self, exit_code: int) -> None:
        if self._exit_code is None:
            self._exit_code = exit_code
            # Close the listeners before the workers drain, so that new connections are refused immediately.
            for listener in self._listeners:
                listener.close()
            for worker in self._workers:
                worker.drain()

    def _start_missing_worker(self) -> None:
        """Start at most one worker at a time.

        The first worker creates what all workers need, such as secrets and tables, or reports a configuration error.
        """
        used = [
            worker.listener
            for worker in self._workers
            if not worker.is_outdated and worker.state is not WorkerState.DRAINING
        ]
        free = [listener for listener in self._listeners if listener not in used]
        is_starting = any(worker.state is WorkerState.STARTING for worker in self._workers)
        must_wait = self._exit_code is not None or is_starting or time.monotonic() < self._next_start_at
        if free and not must_wait:
            worker = _Worker(self._command, free[0], self._timeouts)
            self._workers.append(worker)
            self._selector.register(worker.status_pipe, selectors.EVENT_READ, worker)

    def _read_status(self, worker: _Worker) -> None:
        status = os.read(worker.status_pipe, 1000)
        if not status:
            self._selector.unregister(worker.status_pipe)
            self._workers.remove(worker)
            if worker.state is not WorkerState.DRAINING:
                self._close_backlog(worker.listener)
            self._handle_exit(worker, worker.reap())
        elif b"-" in status:
            worker.mark_draining()
            self._close_backlog(worker.listener)
        else:
            worker.mark_serving()
            self._has_served = True
            if not worker.is_outdated:
                self._drain_predecessors(worker)

    def _drain_predecessors(self, worker: _Worker) -> None:
        for other in self._workers:
            if other.is_outdated and other.state is not WorkerState.DRAINING and other.listener is worker.listener:
                other.drain()

    def _close_backlog(self, listener: socket.socket) -> None:
        """Stop listening on the socket of a worker that stopped accepting connections, if another worker is serving.

        The kernel then passes new connections to the other listeners, and resets those waiting in this backlog.
        Do this only once, when the worker stops: its successor may listen on the same socket before the worker exits.
        """
        serving = [worker.listener for worker in self._workers if worker.state is WorkerState.SERVING]
        if serving and listener not in serving:
            with suppress(OSError):  # the socket is not listening, or is closed
                listener.shutdown(socket.SHUT_RD)

    def _handle_exit(self, worker: _Worker, exit_code: int) -> None:
        if self._exit_code is not None or worker.state is WorkerState.DRAINING:
            return
        if worker.state is WorkerState.SERVING:
            _logger.warning("worker %d exited with code %d; starting another", worker.pid, exit_code)
        elif self._has_served:
            _logger.error("a new worker failed to start (exit code %d); the current workers keep serving", exit_code)
            self._next_start_at = time.monotonic() + self._timeouts.retry_seconds
            for other in self._workers:
                other.is_outdated = False
        else:
            self._shut_down(exit_code if exit_code > 0 else 1)

    def _kill_timed_out_workers(self) -> None:
        for worker in self._workers:
            if worker.timed_out():
                _logger.error("worker %d timed out while %s; killing it", worker.pid, worker.state.value)
                worker.kill()


def supervise(
    listeners: Sequence[int],
    *,
    max_connections: int,
    connections_per_address: int | None = None,
    access_log: bool,
    log_format: Format,
) -> int:
    """Serve until a signal ends the service, and return the exit code.

    Args:
        listeners: file descriptors of sockets that are bound to the same address, one for each worker.
        max_connections: the maximum number of connections per worker.
        connections_per_address: the maximum number of connections per worker from one address; by default a tenth.
        access_log: whether the workers log each request.
        log_format: the log format of the supervisor. Each worker reads the configuration itself.
    """
    logging.config.dictConfig(log_config(log_format))

    def command(listener_fd: int, supervisor_fd: int, status_fd: int) -> list[str]:
        arguments = {
            "listener_fd": listener_fd,
            "supervisor_fd": supervisor_fd,
            "status_fd": status_fd,
            "max_connections": max_connections,
            "connections_per_address": connections_per_address,
            "access_log": access_log,
        }
        return [sys.executable, "-P", "-m", "mlapi.entrypoints.server.worker", json.dumps(arguments)]

    with tempfile.TemporaryDirectory(prefix="mlapi-metrics-") as folder:
        if len(listeners) > 1:
            os.environ.setdefault(
                FOLDER_VARIABLE, folder
            )  # all workers write their metrics here, and any of them can report the sum
        sockets = [socket.socket(fileno=listener) for listener in listeners]
        address, port, *_ = sockets[0].getsockname()
        _logger.info("listening at http://%s:%d", f"[{address}]" if ":" in address else address, port)
        supervisor = Supervisor(sockets, command)
        for signal_number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda number, _: supervisor.send_signal(number))
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(supervise(**json.loads(sys.argv[1])))
