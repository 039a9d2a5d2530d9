"""The parent process of ``mlapi serve``, which owns the port and starts, monitors and restarts the workers.

It does not read requests or open the database.

Each worker has its own listener for each TCP address: a socket bound to the same address as the others. The kernel
distributes new connections evenly among the listeners. With a single shared socket, the worker that wakes up first
would accept a whole burst of connections, and keep all of them. Unix sockets and inherited sockets cannot be bound
twice, so the workers share them.

A listener starts to listen when its worker is ready. If the worker dies, the supervisor accepts the connections of this
listener and passes them to the other workers, until a new worker takes over. If no worker is left, new connections wait
while one is started. If the start fails or takes too long, the listeners stop listening, so the kernel refuses clients.
Inherited listeners keep listening: the parent process decides what happens to their connections.

- SIGHUP replaces each worker with a new one, which loads the current code and configuration. The port stays open and no
  request is lost.
- SIGTERM drains the workers, then exits.
- SIGINT drains the workers, but closes connections without a request. A second SIGINT kills the workers.
"""

import json
import logging.config
import math
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from mlapi import __version__
from mlapi.entrypoints.http.metrics import FOLDER_VARIABLE
from mlapi.entrypoints.logs import log_config
from mlapi.entrypoints.server.arguments import SupervisorArguments
from mlapi.entrypoints.server.listeners import describe_listener, start_listening, stop_listening
from mlapi.entrypoints.server.messages import STARTUP_FAILURE, Status
from mlapi.entrypoints.server.orphans import OrphanedListeners
from mlapi.entrypoints.server.processes import (
    SIGNALS,
    Command,
    Listeners,
    Timeouts,
    Worker,
    WorkerState,
    describe_exit,
)
from mlapi.entrypoints.server.unix_sockets import SocketFile
from mlapi.entrypoints.wire.paths import CONSOLE_PATH

_logger = logging.getLogger("mlapi")

MAX_START_ATTEMPTS = 5
"""The supervisor exits if this many workers in a row fail to start while none is serving."""


class Supervisor:
    """Keeps one worker running for each group of listeners until a signal ends the service.

    Args:
        groups: the listeners of each worker. The supervisor closes them when it shuts down.
        command: returns the command line of a worker.
        timeouts: how long to wait for a worker.
        is_inherited: whether the parent process has opened the listeners, which then keep listening.
        socket_file: the file of a Unix socket, which the supervisor removes when it shuts down.
    """

    def __init__(
        self,
        groups: Sequence[Listeners],
        command: Command,
        timeouts: Timeouts | None = None,
        *,
        is_inherited: bool = False,
        socket_file: SocketFile | None = None,
    ) -> None:
        self._groups = groups
        self._listeners = [listener for group in groups for listener in group]
        self._command = command
        self._timeouts = timeouts or Timeouts()
        self._is_inherited = is_inherited
        self._socket_file = socket_file
        self._workers: list[Worker] = []
        self._has_served = False
        """True after a worker has started successfully."""
        self._failed_starts = 0
        """The number of workers that failed to start since one started successfully."""
        self._next_start_at = 0.0
        """Do not start a worker before this monotonic time."""
        self._refuse_at = math.inf
        """The monotonic time at which the listeners stop listening. Infinite while a worker is serving."""
        self._exit_code: int | None = None
        """None until shutdown begins."""
        self._signals, self._signal_pipe = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._orphans = OrphanedListeners(self._selector)

    def send_signal(self, signal_number: int) -> None:
        """Queue SIGHUP, SIGTERM or SIGINT. Safe to call from signal handlers and from other threads."""
        os.write(self._signal_pipe, bytes([signal_number]))

    def run(self) -> int:
        """Run until all workers have exited.

        Returns:
            The exit code: 0 after a signal, or non-zero if no worker is serving and none can start.
        """
        for listener in self._listeners:
            listener.settimeout(0)
        next_check = time.monotonic() + self._timeouts.check_seconds
        while self._exit_code is None or self._workers:
            self._start_missing_worker()
            self._orphans.watch([] if self._exit_code is not None else self._listeners, self._serving)
            for key, _ in self._selector.select(self._timeouts.check_seconds):
                if key.fd == self._signals:
                    for signal_number in os.read(self._signals, 100):
                        self._handle_signal(signal_number)
                elif isinstance(key.data, Worker):
                    self._read_status(key.data)
                else:
                    self._orphans.pass_on_connections(key.data, self._serving)
            if time.monotonic() > next_check:
                next_check = time.monotonic() + self._timeouts.check_seconds
                self._check_workers()
        self._selector.close()
        os.close(self._signals)
        os.close(self._signal_pipe)
        return self._exit_code

    @property
    def _serving(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.state is WorkerState.SERVING]

    def _handle_signal(self, signal_number: int) -> None:
        if signal_number == signal.SIGHUP:
            _logger.info("restarting: replacing each worker with a new one")
            self._next_start_at = 0.0
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
            self._refuse_at = math.inf
            if self._socket_file is not None:  # remove it first: from now on, no more clients should connect
                self._socket_file.remove()
            self._orphans.pass_on_all(self._serving)
            # The workers have copies of the listeners, and close them once they have accepted the waiting connections.
            for listener in self._listeners:
                listener.close()
            for worker in self._workers:
                worker.stop()

    # --- workers

    def _start_missing_worker(self) -> None:
        """Start at most one worker at a time.

        The first worker creates what all workers need, such as secrets and tables, or reports a configuration error.
        """
        used = [
            worker.listeners
            for worker in self._workers
            if not worker.is_outdated and worker.state is not WorkerState.DRAINING
        ]
        free = [group for group in self._groups if group not in used]
        is_starting = any(worker.state is WorkerState.STARTING for worker in self._workers)
        must_wait = self._exit_code is not None or is_starting or time.monotonic() < self._next_start_at
        if free and not must_wait:
            try:
                worker = Worker(self._command, free[0], self._timeouts)
            except OSError as error:
                self._handle_failed_start(f"{error.strerror}".lower(), 1)
                return
            self._workers.append(worker)
            self._selector.register(worker.status_pipe, selectors.EVENT_READ, worker)

    def _read_status(self, worker: Worker) -> None:
        status = os.read(worker.status_pipe, 1000)
        if not status:
            self._selector.unregister(worker.status_pipe)
            self._workers.remove(worker)
            self._handle_exit(worker, worker.reap())
        elif Status.DRAINING.value in status:
            worker.mark_draining()
        else:
            is_ready = worker.state is WorkerState.STARTING
            worker.mark_serving()
            if is_ready:
                self._handle_start(worker)
            worker.is_outdated = worker.is_outdated or Status.REPLACE_ME.value in status

    def _handle_start(self, worker: Worker) -> None:
        # The supervisor may have stopped the listener at the same moment, because no worker was serving.
        for listener in worker.listeners:
            start_listening(listener)
        self._refuse_at = math.inf
        if not self._has_served:
            self._has_served = True
            _logger.info("listening at %s", ", ".join(map(describe_listener, worker.listeners)))
        self._failed_starts = 0
        for other in self._serving:
            if other.is_outdated and not worker.is_outdated and other.listeners is worker.listeners:
                other.leave()

    def _handle_exit(self, worker: Worker, exit_code: int) -> None:
        if self._exit_code is not None or worker.state is WorkerState.DRAINING:
            return
        description = describe_exit(exit_code)
        if worker.state is WorkerState.STARTING:
            self._handle_failed_start(description, exit_code)
            return
        _logger.warning("worker %d exited (%s); starting another", worker.pid, description)
        if not self._serving:
            self._next_start_at = 0.0
            self._refuse_at = time.monotonic() + self._timeouts.backlog_seconds

    def _handle_failed_start(self, reason: str, exit_code: int) -> None:
        self._failed_starts += 1
        delay_seconds = self._timeouts.retry_seconds * 2.0 ** (self._failed_starts - 1)
        delay_seconds = min(delay_seconds, self._timeouts.max_retry_seconds)
        self._next_start_at = time.monotonic() + delay_seconds
        if self._serving:
            _logger.error("a new worker failed to start (%s); the current workers keep serving", reason)
            for worker in self._workers:
                worker.is_outdated = False
            return
        self._refuse_connections()
        is_fatal = exit_code == STARTUP_FAILURE or self._failed_starts == MAX_START_ATTEMPTS or not self._has_served
        _logger.error(
            "no worker is serving, and a new one failed to start (%s); %s",
            reason,
            "exiting" if is_fatal else f"trying again in {delay_seconds:g} s",
        )
        if is_fatal:
            self._shut_down(exit_code if exit_code > 0 else 1)

    def _check_workers(self) -> None:
        for worker in self._workers:
            if worker.timed_out():
                _logger.error("worker %d timed out while %s; killing it", worker.pid, worker.state.value)
                worker.kill()
        if time.monotonic() > self._refuse_at:
            self._refuse_connections()

    def _refuse_connections(self) -> None:
        """Stop listening until a worker is serving. Do so only once, because a new worker may be about to listen."""
        self._refuse_at = math.inf
        for listener in [] if self._is_inherited else self._listeners:
            stop_listening(listener)


def supervise(arguments: SupervisorArguments) -> int:
    """Serve until a signal ends the service, and return the exit code."""
    logging.config.dictConfig(log_config(arguments.log_format))
    groups = [[socket.socket(fileno=descriptor) for descriptor in group] for group in arguments.listener_fds]
    _logger.info("mlapi %s: the console is at %s", __version__, _console_url(groups[0], arguments.worker.root_path))

    def command(listener_fds: Sequence[int], supervisor_fd: int, status_fd: int) -> list[str]:
        descriptors = {"listener_fds": listener_fds, "supervisor_fd": supervisor_fd, "status_fd": status_fd}
        options = {**descriptors, "options": msgspec.to_builtins(arguments.worker)}
        return [sys.executable, "-P", "-m", "mlapi.entrypoints.server.worker", json.dumps(options)]

    with _metrics_folder(len(groups)):
        supervisor = Supervisor(
            groups,
            command,
            Timeouts.for_keep_alive(arguments.worker.keep_alive_seconds),
            is_inherited=arguments.worker.is_inherited,
            socket_file=arguments.socket_file,
        )
        for signal_number in SIGNALS:
            signal.signal(signal_number, lambda number, _: supervisor.send_signal(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent process has blocked them
        return supervisor.run()


def _console_url(listeners: Sequence[socket.socket], root_path: str) -> str:
    """Return the address of the console for the log. Over a Unix socket, only a proxy knows the host."""
    path = f"{root_path}{CONSOLE_PATH}"
    for listener in listeners:
        if listener.family != socket.AF_UNIX:
            wildcards = {"http://0.0.0.0:": "http://127.0.0.1:", "http://[::]:": "http://[::1]:"}
            url = describe_listener(listener)
            for wildcard, loopback in wildcards.items():
                url = url.replace(wildcard, loopback)
            return url + path
    return f"{path} of the proxy in front of {describe_listener(listeners[0])}"


@contextmanager
def _metrics_folder(workers: int) -> Iterator[None]:
    """Set the folder to which several workers write their metrics, so that any of them can report the sum."""
    if workers == 1 or FOLDER_VARIABLE in os.environ:
        yield
        return
    folder = _create_temporary_folder()
    if folder is not None:
        with folder as os.environ[FOLDER_VARIABLE]:
            yield
        return
    _logger.warning(
        "no temporary folder is writable, so GET /metrics covers only the worker that responds:"
        " set TMPDIR to a writable folder"
    )
    yield


def _create_temporary_folder() -> "tempfile.TemporaryDirectory[str] | None":
    # /dev/shm is writable in most containers with a read-only root file system.
    for parent in (None, "/dev/shm"):  # noqa: S108 - the new folder is private and has a random name
        with suppress(OSError):
            return tempfile.TemporaryDirectory(prefix="mlapi-metrics-", dir=parent)
    return None


if __name__ == "__main__":
    sys.exit(supervise(msgspec.json.decode(sys.argv[1], type=SupervisorArguments)))
