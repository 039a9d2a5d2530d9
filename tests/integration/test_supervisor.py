"""The supervisor of ``mlapi serve``. Most tests replace the workers with a small script that a file controls."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from mlapi.entrypoints.cli.serve import bind_listeners
from mlapi.entrypoints.server import supervisor
from mlapi.entrypoints.server.supervisor import Supervisor, Timeouts, supervise

WORKER = """
import os, select, signal, socket, sys, time
folder, listener_fd, supervisor_fd, status_fd = sys.argv[1], *map(int, sys.argv[2:])
behavior = open(folder + "/behavior").read()
with open(folder + "/pids", "a") as pids:
    pids.write(f"{os.getpid()} ")
if behavior.startswith("exit"):
    sys.exit(int(behavior[4:]))
if behavior == "never ready":
    time.sleep(60)
drains = []
signal.signal(signal.SIGTERM, lambda *_: drains.append(1))
listener = socket.socket(fileno=listener_fd)
listener.listen()
os.write(status_fd, b".")
while not select.select([supervisor_fd], [], [], 0.05)[0]:
    if drains:
        os.write(status_fd, b"-" if len(drains) == 1 else b".")  # a "." may still arrive after the "-"
        drains.append(1)
        listener.close()
        if behavior != "busy":
            break
    elif behavior != "silent":
        os.write(status_fd, b".")
"""
"""A worker that exits as soon as it is told to drain, unless its behavior is ``busy``."""


class Supervised:
    """A supervisor that runs in a thread. Its workers read their behavior from a file when they start."""

    def __init__(self, folder: Path, workers: int, timeouts: Timeouts) -> None:
        self.folder = folder
        self.set_behavior("normal")
        self.listeners = bind_listeners("127.0.0.1", 0, workers)
        self.supervisor = Supervisor(self.listeners, self._command, timeouts)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)

    def _command(self, listener_fd: int, supervisor_fd: int, status_fd: int) -> list[str]:
        descriptors = [str(descriptor) for descriptor in (listener_fd, supervisor_fd, status_fd)]
        return [sys.executable, "-I", "-c", WORKER, str(self.folder), *descriptors]

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def start(self) -> None:
        self._thread.start()

    def set_behavior(self, behavior: str) -> None:
        (self.folder / "behavior").write_text(behavior)

    @property
    def pids(self) -> list[int]:
        """The process ids of all workers started so far, in order."""
        file = self.folder / "pids"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    @property
    def running(self) -> list[int]:
        return [pid for pid in self.pids if is_running(pid)]

    def stop(self, signal_number: int = signal.SIGTERM) -> int | None:
        if self._thread.is_alive():
            self.supervisor.send_signal(signal_number)
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.code


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def is_listening(listener: socket.socket) -> bool:
    """Return whether a worker listens on the socket. A listening worker handles signals."""
    return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 10) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


@pytest.fixture
def start_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervised]]:
    """Return a function that starts a supervisor."""
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL_SECONDS", 0.1)
    started: list[Supervised] = []

    def start(workers: int = 2, behavior: str = "normal", timeouts: Timeouts | None = None) -> Supervised:
        service = Supervised(tmp_path, workers, timeouts or Timeouts(retry_seconds=0.1))
        service.set_behavior(behavior)
        service.start()
        started.append(service)
        return service

    yield start
    for service in started:
        for pid in service.running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        service.stop(signal.SIGINT)


StartService = Callable[..., Supervised]


def test_sigterm_stops_every_worker(start_service: StartService) -> None:
    service = start_service(3)
    wait_until(lambda: len(service.running) == 3)

    code = service.stop()

    assert code == 0
    assert service.running == []
    assert [listener.fileno() for listener in service.listeners] == [-1, -1, -1]


def test_killed_worker_is_replaced(start_service: StartService) -> None:
    service = start_service()
    wait_until(lambda: len(service.running) == 2)
    victim = service.pids[0]

    os.kill(victim, signal.SIGKILL)

    wait_until(lambda: len(service.running) == 2 and len(service.pids) == 3)
    assert victim not in service.running


def test_restart_drains_a_worker_once_its_replacement_serves(start_service: StartService) -> None:
    service = start_service()
    wait_until(lambda: len(service.running) == 2)
    before = service.pids

    service.supervisor.send_signal(signal.SIGHUP)

    min_running = 2
    deadline = time.monotonic() + 10
    while set(service.running) & set(before) and time.monotonic() < deadline:
        min_running = min(min_running, len(service.running))
    assert min_running == 2
    assert len(service.pids) == 4  # every replacement started on the first attempt
    wait_until(lambda: len(service.running) == 2)
    assert not set(service.running) & set(before)
    assert service.code is None


def test_restart_is_abandoned_if_a_new_worker_cannot_start(
    start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    service = start_service()
    wait_until(lambda: len(service.running) == 2)
    before = service.pids
    service.set_behavior("exit3")

    service.supervisor.send_signal(signal.SIGHUP)

    wait_until(lambda: len(service.pids) == 3)
    time.sleep(0.5)
    assert service.running == before
    assert len(service.pids) == 3
    assert "a new worker failed to start (exit code 3); the current workers keep serving" in caplog.messages


def test_starting_a_replacement_is_retried(start_service: StartService) -> None:
    service = start_service()
    wait_until(lambda: len(service.running) == 2)
    service.set_behavior("exit3")
    os.kill(service.pids[0], signal.SIGKILL)
    wait_until(lambda: len(service.pids) >= 5)

    service.set_behavior("normal")

    wait_until(lambda: len(service.running) == 2)


def test_listener_of_a_killed_worker_stops_listening(start_service: StartService) -> None:
    service = start_service(2)
    wait_until(lambda: all(map(is_listening, service.listeners)))
    service.set_behavior("exit3")

    os.kill(service.pids[0], signal.SIGKILL)

    wait_until(lambda: len(service.pids) == 3)
    assert list(map(is_listening, service.listeners)) == [False, True]
    service.set_behavior("normal")
    wait_until(lambda: all(map(is_listening, service.listeners)))


def test_single_listener_keeps_its_backlog_for_the_next_worker(start_service: StartService) -> None:
    service = start_service(1)
    wait_until(lambda: len(service.running) == 1)
    service.set_behavior("exit3")

    os.kill(service.pids[0], signal.SIGKILL)

    wait_until(lambda: len(service.pids) == 2)
    with socket.create_connection(service.listeners[0].getsockname(), timeout=5):
        service.set_behavior("normal")
        wait_until(lambda: len(service.running) == 1)


def test_worker_that_receives_sigterm_is_replaced(start_service: StartService) -> None:
    service = start_service(2, behavior="busy")
    wait_until(lambda: all(map(is_listening, service.listeners)))
    leaving = service.pids[0]

    os.kill(leaving, signal.SIGTERM)

    wait_until(lambda: len(service.pids) == 3)
    assert leaving in service.running
    wait_until(lambda: all(map(is_listening, service.listeners)))


@pytest.mark.parametrize(("behavior", "code"), [("exit3", 3), ("exit0", 1)])
def test_supervisor_exits_if_the_first_worker_cannot_start(
    start_service: StartService, behavior: str, code: int
) -> None:
    service = start_service(behavior=behavior)

    wait_until(lambda: service.code is not None)
    assert service.code == code
    assert len(service.pids) == 1


@pytest.mark.parametrize("behavior", ["silent", "never ready"])
def test_unresponsive_worker_is_killed_and_replaced(start_service: StartService, behavior: str) -> None:
    service = start_service(1, timeouts=Timeouts(start_seconds=3, silence_seconds=3, retry_seconds=0.1))
    wait_until(lambda: len(service.running) == 1)
    service.set_behavior(behavior)
    os.kill(service.pids[0], signal.SIGKILL)
    wait_until(lambda: len(service.pids) == 2)
    service.set_behavior("normal")

    wait_until(lambda: len(service.pids) == 3 and service.running == service.pids[2:])


def test_worker_that_drains_too_long_is_killed(start_service: StartService) -> None:
    service = start_service(1, behavior="busy", timeouts=Timeouts(drain_seconds=0.3))
    wait_until(lambda: all(map(is_listening, service.listeners)))

    started_at = time.monotonic()
    service.stop()

    assert time.monotonic() - started_at < 5
    assert service.running == []


def test_sigint_does_not_wait_for_idle_connections(start_service: StartService) -> None:
    service = start_service(behavior="busy")
    wait_until(lambda: all(map(is_listening, service.listeners)))

    started_at = time.monotonic()
    service.stop(signal.SIGINT)

    assert time.monotonic() - started_at < 3


def test_second_sigint_kills_the_workers(start_service: StartService) -> None:
    service = start_service(behavior="busy")
    wait_until(lambda: all(map(is_listening, service.listeners)))
    for pid in service.running:
        os.kill(pid, signal.SIGSTOP)
    service.supervisor.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert len(service.running) == 2

    service.stop(signal.SIGINT)

    assert service.running == []


def test_sighup_during_shutdown_starts_no_worker(start_service: StartService) -> None:
    service = start_service(behavior="busy")
    wait_until(lambda: all(map(is_listening, service.listeners)))
    service.supervisor.send_signal(signal.SIGTERM)

    service.supervisor.send_signal(signal.SIGHUP)

    time.sleep(0.5)
    assert len(service.pids) == 2


@pytest.mark.usefixtures("restore_process_state")
@pytest.mark.parametrize("workers", [1, 2])
def test_real_workers_serve_on_the_given_sockets(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listeners = bind_listeners("127.0.0.1", 0, workers)
    base = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    statuses: list[int] = []

    def client() -> None:
        statuses.append(requests.get(f"{base}/health/ready", timeout=30).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    code = supervise(
        [listener.detach() for listener in listeners], max_connections=100, access_log=False, log_format="text"
    )
    thread.join()

    assert code == 0
    assert statuses == [200]
    assert ("PROMETHEUS_MULTIPROC_DIR" in os.environ) == (workers > 1)
    with pytest.raises(requests.ConnectionError):
        requests.get(base, timeout=5)
