"""The parent of ``mlapi serve``: it holds the port and sees to its workers; it reads no request and opens no database.

Each worker has a place: a socket of its own, bound to the same address; the system spreads connections evenly among
them. (On one socket for all, a crowd that comes at once is taken by whoever wakes first, and stays with him.)

SIGHUP replaces each worker by a new one, with the code and the configuration as they are then: the port stays open, and
no request is cut. SIGTERM drains and ends. SIGINT too, but does not wait for connections without a request, and the
second one waits for nothing.
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

import attrs

from mlapi.entrypoints.http.metrics import FOLDER
from mlapi.entrypoints.logs import Format, log_config

_logger = logging.getLogger("mlapi")

LOOK = 1.0
"""Seconds between two looks at the workers."""

Command = Callable[[int, int, int], Sequence[str]]
"""Returns what starts a worker, for three file descriptors: the socket on which it shall listen, one whose end it
watches, and one to which it writes ``.`` while it serves and ``-`` when it drains."""


@attrs.frozen(kw_only=True)
class Patience:
    """Seconds."""

    start: float = 300.0
    """That a worker may take to serve, which includes bringing a large SQLite database to a new schema."""
    silence: float = 30.0
    """That a worker may serve without saying that it lives."""
    drain: float = 45.0
    """That a worker has to end: more than its connections have."""
    failure: float = 1.0
    """Before another start, where a worker could not."""


class _Worker:
    """A process that starts, serves or drains."""

    def __init__(self, command: Command, place: socket.socket, patience: Patience) -> None:
        self._supervision: int | None
        supervised, self._supervision = os.pipe()
        self.news, alive = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                command(place.fileno(), supervised, alive),
                pass_fds=(place.fileno(), supervised, alive),
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(supervised)
            os.close(alive)
        self.place = place
        self.pid = self._process.pid
        self.serves = False
        self.drains = False
        self.is_old = False
        """Whether another shall take its place."""
        self._patience = patience
        self._left = patience.start
        """Seconds; counted down by looks, so that a machine that was asleep blames nobody."""

    def says_that_it_serves(self) -> None:
        self.serves = True
        if not self.drains:
            self._left = self._patience.silence

    def says_that_it_drains(self) -> None:
        if not self.drains:
            self.drains = True
            self._left = self._patience.drain

    def drain(self) -> None:
        """Let it answer what it has been asked and will be on connections that are open."""
        self.says_that_it_drains()
        self._process.terminate()

    def hurry(self) -> None:
        """Let it answer what it has been asked."""
        if self._supervision is not None:
            os.close(self._supervision)
            self._supervision = None

    def kill(self) -> None:
        self._process.kill()

    def hangs(self) -> bool:
        """Return whether it has had its time. To be asked at each look."""
        self._left -= LOOK
        return self._left < 0

    def bury(self) -> int:
        """Return the exit code of what has ended."""
        self.hurry()
        os.close(self.news)
        return self._process.wait()


class Supervisor:
    """Sees to it that each place has a worker, until it is asked to end.

    Args:
        places: sockets that are bound to one address. They are closed when this ends.
        command: what starts a worker.
        patience: with workers.
    """

    def __init__(self, places: Sequence[socket.socket], command: Command, patience: Patience | None = None) -> None:
        self._places = places
        self._command = command
        self._patience = patience or Patience()
        self._workers: list[_Worker] = []
        self._has_served = False
        self._not_before = 0.0
        """When a worker may be started."""
        self._code: int | None = None
        """With which this ends, once that is decided."""
        self._asked, self._ask = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._asked, selectors.EVENT_READ)

    def ask(self, signal_number: int) -> None:
        """Do what SIGHUP, SIGTERM or SIGINT asks for. For handlers of signals, and for threads."""
        os.write(self._ask, bytes([signal_number]))

    def run(self) -> int:
        """Return the exit code when all workers have ended: not 0 if the first one refused to start."""
        next_look = time.monotonic() + LOOK
        while self._code is None or self._workers:
            self._start_what_is_missing()
            for key, _ in self._selector.select(LOOK):
                if key.fd == self._asked:
                    for signal_number in os.read(self._asked, 100):
                        self._obey(signal_number)
                else:
                    self._hear(key.data)
            if time.monotonic() > next_look:
                next_look = time.monotonic() + LOOK
                self._end_what_hangs()
        self._selector.close()
        os.close(self._asked)
        os.close(self._ask)
        return self._code

    def _obey(self, signal_number: int) -> None:
        if signal_number == signal.SIGHUP:
            _logger.info("restarting: each worker ends when another has taken its place")
            for worker in self._workers:
                worker.is_old = True
            return
        is_repeated = self._code is not None
        self._end(0)
        if signal_number == signal.SIGINT:
            for worker in self._workers:
                worker.hurry()
                if is_repeated:
                    worker.kill()

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code
            for place in self._places:
                place.close()  # before the workers do: whoever comes now is refused, and not kept waiting
            for worker in self._workers:
                worker.drain()

    def _start_what_is_missing(self) -> None:
        """Start one worker at a time: the first makes what all of them need, or finds out what is wrong."""
        held = [worker.place for worker in self._workers if not worker.is_old and not worker.drains]
        free = [place for place in self._places if place not in held]
        is_starting = any(not worker.serves for worker in self._workers)
        has_to_wait = self._code is not None or is_starting or time.monotonic() < self._not_before
        if free and not has_to_wait:
            worker = _Worker(self._command, free[0], self._patience)
            self._workers.append(worker)
            self._selector.register(worker.news, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> None:
        news = os.read(worker.news, 1000)
        if not news:
            self._selector.unregister(worker.news)
            self._workers.remove(worker)
            if not worker.drains:
                self._turn_away_from(worker.place)
            self._see_to_the_end_of(worker, worker.bury())
        elif b"-" in news:
            worker.says_that_it_drains()
            self._turn_away_from(worker.place)
        else:
            worker.says_that_it_serves()
            self._has_served = True
            for other in self._workers:
                if other.is_old and not other.drains and not worker.is_old and other.place is worker.place:
                    other.drain()

    def _turn_away_from(self, place: socket.socket) -> None:
        """Let the system bring nobody to a place whose worker has just left it, if another place has one that serves.

        Whoever waits there is refused. The next worker listens there again, and may have begun to by the time that one
        which drains has ended: so this is done once, when it leaves.
        """
        serving = [worker.place for worker in self._workers if worker.serves and not worker.drains]
        if serving and place not in serving:
            with suppress(OSError):  # nobody listens there, or all are closed
                place.shutdown(socket.SHUT_RD)

    def _see_to_the_end_of(self, worker: _Worker, code: int) -> None:
        if self._code is not None or worker.drains:
            return
        if worker.serves:
            _logger.warning("worker %d has ended with %d; another is started", worker.pid, code)
        elif self._has_served:
            _logger.error("a new worker could not start (%d): those that serve go on", code)
            self._not_before = time.monotonic() + self._patience.failure
            for other in self._workers:
                other.is_old = False
        else:
            self._end(code if code > 0 else 1)

    def _end_what_hangs(self) -> None:
        for worker in self._workers:
            if worker.hangs():
                _logger.error("worker %d hangs and is ended", worker.pid)
                worker.kill()


def supervise(places: Sequence[int], *, connections: int, access_log: bool, log_format: Format) -> int:
    """Serve until a signal ends that; return the exit code.

    Args:
        places: the file descriptors of sockets that are bound to one address, one for each worker.
        connections: at most, to each of them.
        access_log: whether they write a line for each request.
        log_format: of this process. Each worker reads the configuration for itself.
    """
    logging.config.dictConfig(log_config(log_format))

    def command(listening: int, supervised: int, alive: int) -> list[str]:
        arguments = {"listening": listening, "supervised": supervised, "alive": alive, "connections": connections}
        module = "mlapi.entrypoints.server.worker"
        return [sys.executable, "-P", "-m", module, json.dumps(arguments | {"access_log": access_log})]

    with tempfile.TemporaryDirectory(prefix="mlapi-metrics-") as folder:
        if len(places) > 1:
            os.environ.setdefault(FOLDER, folder)  # each counts there, any of them tells all
        sockets = [socket.socket(fileno=place) for place in places]
        address, port, *_ = sockets[0].getsockname()
        _logger.info("listening at http://%s:%d", f"[{address}]" if ":" in address else address, port)
        supervisor = Supervisor(sockets, command)
        for signal_number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda number, _: supervisor.ask(number))
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(supervise(**json.loads(sys.argv[1])))
