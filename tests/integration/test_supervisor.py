"""The supervisor of ``mlapi serve``. Most tests replace the workers with a small script that a file controls."""

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
import requests

from mlapi.entrypoints.server import processes, supervisor
from mlapi.entrypoints.server.arguments import SupervisorArguments, WorkerOptions
from mlapi.entrypoints.server.listeners import is_listening
from mlapi.entrypoints.server.processes import Timeouts
from mlapi.entrypoints.server.supervisor import MAX_START_ATTEMPTS, Supervisor, supervise
from mlapi.entrypoints.server.tcp_sockets import bind_hosts
from mlapi.entrypoints.server.unix_sockets import bind_path
from tests.waiting import wait_until

WORKER = """
import os, select, signal, socket, sys, time
from contextlib import suppress

def accept():
    with listener.accept()[0] as connection:
        connection.sendall(b"accepted by %d" % os.getpid())

folder, listener_fd, orders_fd, status_fd = sys.argv[1], *map(int, sys.argv[2:])
behavior = open(folder + "/behavior").read()
with open(folder + "/pids", "a") as pids:
    pids.write(f"{os.getpid()} ")
if behavior.startswith("exit"):
    sys.exit(int(behavior[4:]))
if behavior == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if behavior == "never ready":
    time.sleep(60)
signal.signal(signal.SIGTERM, lambda *_: os.write(status_fd, b"r"))
orders = socket.socket(fileno=orders_fd)
listener = socket.socket(fileno=listener_fd)
if behavior != "not listening":
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.listen()
os.write(status_fd, b".")
is_draining = False
while True:
    sources = [orders] if listener is None else [orders, listener]
    readable = select.select(sources, [], [], 0.05)[0]
    if orders in readable:
        order, descriptors, _, _ = socket.recv_fds(orders, 1, 1)
        if not order:
            break
        if order == b"c":
            with socket.socket(fileno=descriptors[0]) as connection:
                connection.sendall(b"passed to %d" % os.getpid())
            continue
        with suppress(BlockingIOError):
            while True:
                accept()
        os.write(status_fd, b"-")
        is_draining = True
        listener.close()
        listener = None
        if behavior != "busy":
            break
    elif listener in readable:
        with suppress_errors(), listener.accept()[0] as connection:
            connection.sendall(b"accepted by %d" % os.getpid())
    elif behavior != "silent":
        os.write(status_fd, b".")  # also after the "-"
""".replace("suppress_errors()", "__import__('contextlib').suppress(OSError)")
"""A worker that exits as soon as it is told to drain, unless its behavior is ``busy``.

It sends its process id to each client.
"""


FAST = Timeouts(retry_seconds=0.1, max_retry_seconds=0.2)


class Supervised:
    """A supervisor that runs in a thread. Its workers read their behavior from a file when they start."""

    def __init__(self, folder: Path, workers: int, timeouts: Timeouts) -> None:
        self.folder = folder
        self.set_behavior("normal")
        (self.listeners,) = bind_hosts(["127.0.0.1"], 0, workers)
        self.address = self.listeners[0].getsockname()
        self.supervisor = Supervisor([[listener] for listener in self.listeners], self._command, timeouts)
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run)

    def _command(self, listeners: Sequence[int], *descriptors: int) -> list[str]:
        return [sys.executable, "-I", "-c", WORKER, str(self.folder), *map(str, [*listeners, *descriptors])]

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
        while True:
            pids = self.pids
            running = [pid for pid in pids if is_running(pid)]
            if pids == self.pids:  # otherwise, a worker has started in the meantime, and may have replaced one of these
                return running

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


def ask(service: Supervised) -> str:
    """Return what a worker sends to a new connection."""
    with socket.create_connection(service.address, timeout=10) as connection:
        return connection.recv(100).decode()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Return a function that starts a supervisor."""
    started: list[Supervised] = []

    def start(workers: int = 2, behavior: str = "normal", timeouts: Timeouts | None = None) -> Supervised:
        timeouts = attrs.evolve(timeouts or FAST, check_seconds=0.1)
        service = Supervised(tmp_path, workers, timeouts)
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


@pytest.mark.parametrize("max_accepts", [1, 100])
def test_connections_of_a_killed_worker_are_passed_to_the_others(
    max_accepts: int, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlapi.entrypoints.server.orphans._MAX_ACCEPTS", max_accepts)
    service = start_service(3)
    wait_until(lambda: all(map(is_listening, service.listeners)))
    service.set_behavior("exit3")
    victim, *others = service.pids

    os.kill(victim, signal.SIGKILL)

    wait_until(lambda: len(service.pids) == 4)
    answers = {ask(service) for _ in range(60)}
    assert {f"passed to {pid}" for pid in others} <= answers
    assert answers <= {f"{how} {pid}" for how in ("passed to", "accepted by") for pid in others}
    service.set_behavior("normal")
    wait_until(lambda: len(service.running) == 3)
    wait_until(lambda: not any(ask(service).startswith("passed") for _ in range(60)))


def test_single_listener_keeps_its_backlog_for_the_next_worker(start_service: StartService) -> None:
    service = start_service(1)
    wait_until(lambda: is_listening(service.listeners[0]))
    assert ask(service)
    os.kill(service.pids[0], signal.SIGSTOP)

    with socket.create_connection(service.address, timeout=10) as waiting:
        os.kill(service.pids[0], signal.SIGKILL)

        assert waiting.recv(100).startswith(b"accepted by")
        assert len(service.pids) == 2


def test_clients_are_refused_if_no_worker_can_start(
    start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    service = start_service(1, timeouts=Timeouts(retry_seconds=0.5))
    wait_until(lambda: is_listening(service.listeners[0]))
    service.set_behavior("killed")

    os.kill(service.pids[0], signal.SIGKILL)

    wait_until(lambda: len(service.pids) == 2 and not is_listening(service.listeners[0]))
    with pytest.raises(ConnectionRefusedError):
        ask(service)
    service.set_behavior("normal")
    wait_until(lambda: is_listening(service.listeners[0]))
    assert ask(service) == f"accepted by {service.pids[-1]}"
    assert "no worker is serving, and a new one failed to start (SIGKILL); trying again in 0.5 s" in caplog.messages


def test_clients_are_refused_if_the_next_worker_starts_slowly(start_service: StartService) -> None:
    service = start_service(1, timeouts=attrs.evolve(FAST, backlog_seconds=0.3))
    wait_until(lambda: is_listening(service.listeners[0]))
    service.set_behavior("never ready")

    os.kill(service.pids[0], signal.SIGKILL)

    wait_until(lambda: not is_listening(service.listeners[0]))
    with pytest.raises(ConnectionRefusedError):
        ask(service)
    service.set_behavior("normal")
    wait_until(lambda: len(service.pids) == 2)
    os.kill(service.pids[1], signal.SIGKILL)
    wait_until(lambda: is_listening(service.listeners[0]))
    assert ask(service) == f"accepted by {service.pids[2]}"


def test_listener_that_stopped_listening_listens_again(start_service: StartService) -> None:
    """It may stop at the same moment as its next worker starts to listen."""
    service = start_service(1, behavior="not listening")

    wait_until(lambda: is_listening(service.listeners[0]))

    assert ask(service) == f"accepted by {service.pids[0]}"


@pytest.mark.parametrize(
    ("behavior", "attempts", "code", "reason"),
    [
        ("exit3", 1, 3, "exit code 3"),
        ("exit1", MAX_START_ATTEMPTS, 1, "exit code 1"),
        ("killed", MAX_START_ATTEMPTS, 1, "SIGKILL"),
    ],
)
def test_supervisor_exits_if_all_workers_died_and_none_can_start(
    behavior: str, attempts: int, code: int, reason: str, request: pytest.FixtureRequest
) -> None:
    start_service: StartService = request.getfixturevalue("start_service")
    caplog: pytest.LogCaptureFixture = request.getfixturevalue("caplog")
    service = start_service(2)
    wait_until(lambda: all(map(is_listening, service.listeners)))
    service.set_behavior(behavior)

    for pid in service.pids:
        os.kill(pid, signal.SIGKILL)

    wait_until(lambda: service.code is not None)
    assert service.code == code
    assert len(service.pids) == 2 + attempts
    assert caplog.messages[-1] == f"no worker is serving, and a new one failed to start ({reason}); exiting"
    with pytest.raises(ConnectionRefusedError):
        ask(service)


def test_last_worker_is_replaced_without_delay(start_service: StartService, caplog: pytest.LogCaptureFixture) -> None:
    service = start_service(1, timeouts=Timeouts(retry_seconds=30))
    wait_until(lambda: is_listening(service.listeners[0]))
    service.set_behavior("exit3")
    service.supervisor.send_signal(signal.SIGHUP)
    wait_until(lambda: "keep serving" in caplog.text)
    service.set_behavior("normal")

    os.kill(service.pids[0], signal.SIGKILL)

    wait_until(lambda: len(service.running) == 1 and len(service.pids) == 3)


@pytest.mark.parametrize("has_served", [True, False])
def test_failure_to_start_a_process_is_reported(
    has_served: bool, start_service: StartService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if not has_served:
        monkeypatch.setattr("subprocess.Popen", fail)
    service = start_service(1)
    if has_served:
        wait_until(lambda: is_listening(service.listeners[0]))
        monkeypatch.setattr("subprocess.Popen", fail)
        os.kill(service.pids[0], signal.SIGKILL)

    wait_until(lambda: service.code is not None)

    assert service.code == 1
    assert caplog.messages[-1].endswith("a new one failed to start (too many open files); exiting")


def test_waiting_connections_are_passed_on_before_shutdown(start_service: StartService) -> None:
    service = start_service(2)
    wait_until(lambda: all(map(is_listening, service.listeners)))
    service.set_behavior("never ready")
    os.kill(service.pids[0], signal.SIGKILL)
    wait_until(lambda: len(service.pids) == 3)

    waiting = [socket.create_connection(service.address, timeout=10) for _ in range(20)]
    service.stop()

    with ExitStack() as stack:
        connections = [stack.enter_context(connection) for connection in waiting]
        assert {"accepted ", "passed to"} == {connection.recv(9).decode() for connection in connections}


def test_connection_is_closed_if_no_worker_takes_it(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlapi.entrypoints.server.orphans._PASS_ON_SECONDS", 0.1)
    monkeypatch.setattr(processes.Worker, "serve", lambda _worker, _connection: False)
    service = start_service(2)
    wait_until(lambda: all(map(is_listening, service.listeners)))
    service.set_behavior("never ready")
    os.kill(service.pids[0], signal.SIGKILL)
    wait_until(lambda: len(service.pids) == 3)

    assert "" in {ask(service) for _ in range(60)}


def test_worker_that_receives_sigterm_is_replaced(start_service: StartService) -> None:
    service = start_service(2, behavior="busy")
    wait_until(lambda: all(map(is_listening, service.listeners)))
    leaving = service.pids[0]

    os.kill(leaving, signal.SIGTERM)

    wait_until(lambda: len(service.pids) == 3)
    assert leaving in service.running
    assert all(map(is_listening, service.listeners))
    assert ask(service)


@pytest.mark.parametrize(("behavior", "code"), [("exit3", 3), ("exit0", 1), ("killed", 1)])
def test_supervisor_exits_if_the_first_worker_cannot_start(
    start_service: StartService, behavior: str, code: int
) -> None:
    service = start_service(behavior=behavior)

    wait_until(lambda: service.code is not None)
    assert service.code == code
    assert len(service.pids) == 1


@pytest.mark.parametrize("behavior", ["silent", "never ready"])
def test_unresponsive_worker_is_killed_and_replaced(start_service: StartService, behavior: str) -> None:
    service = start_service(1, timeouts=attrs.evolve(FAST, start_seconds=3, silence_seconds=3))
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


def test_worker_that_is_starting_is_stopped_immediately(start_service: StartService) -> None:
    service = start_service(1, behavior="never ready")
    wait_until(lambda: len(service.running) == 1)

    started_at = time.monotonic()
    code = service.stop()

    assert code == 0
    assert service.running == []
    assert time.monotonic() - started_at < 5


def test_worker_that_is_starting_and_hangs_is_killed(start_service: StartService) -> None:
    service = start_service(1, behavior="never ready", timeouts=attrs.evolve(FAST, abort_seconds=0.3))
    wait_until(lambda: len(service.running) == 1)
    os.kill(service.pids[0], signal.SIGSTOP)

    assert service.stop() == 0
    assert service.running == []


def test_inherited_listener_keeps_listening_if_no_worker_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        group = [socket.socket(fileno=os.dup(listener.fileno()))]
        service = Supervisor([group], lambda *_: ["false"], FAST, is_inherited=True)

        assert service.run() == 1
        with socket.create_connection(listener.getsockname(), timeout=5):
            pass


def test_unix_socket_file_is_removed_at_the_stop() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mlapi.sock"
        listener, file = bind_path(str(path), 0o600)

        assert Supervisor([[listener]], lambda *_: ["false"], FAST, socket_file=file).run() == 1
        assert not path.exists()


def test_worker_that_was_ready_at_the_last_moment_may_drain(tmp_path: Path) -> None:
    worker = processes.Worker(lambda *_: ["sleep", "60"], [socket.socket()], Timeouts(abort_seconds=0))
    worker.stop()
    assert worker.timed_out()

    worker.mark_serving()

    assert not worker.timed_out()
    worker.kill()
    worker.reap()
    with worker.listeners[0] as connection:
        assert not worker.serve(connection)


@pytest.mark.usefixtures("restore_process_state")
def test_service_starts_without_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_options: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr("tempfile.TemporaryDirectory", fail)

    with supervisor._metrics_folder(2):
        assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ

    assert caplog.messages[-1].startswith("no temporary folder is writable")


def test_exit_of_a_process_is_described_in_words() -> None:
    assert [processes.describe_exit(code) for code in (3, -9, -200)] == ["exit code 3", "SIGKILL", "signal 200"]


@pytest.mark.usefixtures("restore_process_state")
@pytest.mark.parametrize("workers", [1, 2])
def test_real_workers_serve_on_the_given_sockets(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (listeners,) = bind_hosts(["127.0.0.1"], 0, workers)
    base = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    statuses: list[int] = []

    def is_ready() -> bool:
        try:
            statuses.append(requests.get(f"{base}/health/ready", timeout=30).status_code)
        except requests.ConnectionError:  # no worker is ready
            return False
        return True

    def client() -> None:
        try:
            wait_until(is_ready, timeout_seconds=60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    code = supervise(
        SupervisorArguments(
            listener_fds=[[listener.detach()] for listener in listeners],
            log_format="text",
            worker=WorkerOptions(max_connections=100, access_log=False),
        )
    )
    thread.join()

    assert code == 0
    assert statuses == [200]
    assert ("PROMETHEUS_MULTIPROC_DIR" in os.environ) == (workers > 1)
    with pytest.raises(requests.ConnectionError):
        requests.get(base, timeout=5)
