"""Graceful restarts: the port stays open, and no request is cut."""

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import MlapiServer
from tests.torture.clients import ask, new_user

CLIENTS = 8


class Client(threading.Thread):
    """Asks on a connection that it keeps as long as the server does, as every HTTP library may."""

    def __init__(self, port: int, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._port = port
        self._number = number
        self._stop_asking = stop
        self.statuses: Counter[int] = Counter()
        self.connections = 0
        self.cut: list[str] = []

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop_asking.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
                self.connections += 1
            flag = self.statuses.total() % 2
            try:
                # Nothing is sent a second time: whatever the server does to a request shows.
                connection.request("PUT", f"/toggle-user-permission/{self._number + 1}/{flag}")
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.cut.append(repr(error))
                connection.close()
                connection = None
                continue
            self.statuses[response.status] += 1
            if response.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_cut_by_restarts_under_load(
    workers: int, tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    restarts, least = times(2, 20), times(1_000, 30_000)
    environ = {"MLAPI_PASSWORDS__SCHEME": "fernet"}
    stop = threading.Event()
    with MlapiServer(tmp_path, environ, "--workers", str(workers), "--no-access-log") as server:
        for number in range(CLIENTS):
            register(server, number)
        clients = [Client(server.port, number, stop) for number in range(CLIENTS)]
        for client in clients:
            client.start()

        deadline = time.monotonic() + 600
        for _ in range(restarts):
            before = settled(server, workers)
            os.kill(server.pid, signal.SIGHUP)
            while server.workers & before and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not settled(server, workers) & before
        while sum(client.statuses.total() for client in clients) < least and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        for client in clients:
            client.join()

    statuses = sum((client.statuses for client in clients), Counter())
    cut = [error for client in clients for error in client.cut]
    connections = sum(client.connections for client in clients)
    tell(
        f"restarts, {workers} worker(s): {restarts} under load, {statuses.total():,} requests on {connections}"
        f" connections, {len(cut)} cut, {statuses.total() - statuses[200]} not answered with 200"
    )
    assert cut == []
    assert set(statuses) == {200}
    assert statuses.total() >= least
    assert connections >= CLIENTS * (1 + restarts)
    assert "Traceback" not in server.log


def settled(server: MlapiServer, wanted: int) -> set[int]:
    """Return the workers once there are as many as wanted, and all of them serve."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers = server.workers
        log = server.log
        started = log.count("Application startup complete")
        if len(workers) == wanted and started == log.count("Started server process"):
            return workers
        time.sleep(0.05)
    raise AssertionError(f"there are not {wanted} workers:\n{server.log[-2000:]}")


def register(server: MlapiServer, number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    status, _ = ask(connection, "POST", "/register-user", new_user(f"u{number}"))
    assert status == 201
    connection.close()


def test_a_stop_under_load_answers_what_was_taken_and_refuses_the_rest(tmp_path: Path) -> None:
    stop = threading.Event()
    with MlapiServer(tmp_path, {"MLAPI_PASSWORDS__SCHEME": "fernet"}, "--workers", "2", "--no-access-log") as server:
        for number in range(CLIENTS):
            register(server, number)
        clients = [Client(server.port, number, stop) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(0.5)

        server.stop()

        stop.set()
        for client in clients:
            client.join()

    assert {error.partition("(")[0] for client in clients for error in client.cut} <= {
        "ConnectionRefusedError",
        "ConnectionResetError",  # it was in the system's queue of those that nobody had taken yet
    }
    assert all(set(client.statuses) == {200} for client in clients)
    with pytest.raises(ConnectionRefusedError):
        register(server, CLIENTS)


def test_workers_end_with_the_parent_that_was_killed(tmp_path: Path) -> None:
    with MlapiServer(tmp_path, {}, "--workers", "2") as server:
        workers = settled(server, 2)

        os.kill(server.pid, signal.SIGKILL)

        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_restart_takes_up_the_configuration_as_it_is_then(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("registration: {open: true}\n")
    with MlapiServer(tmp_path) as server:
        register(server, 1)
        (tmp_path / "config.yml").write_text("registration: {open: false}\nmanagement: {local: false}\n")
        before = settled(server, 1)
        os.kill(server.pid, signal.SIGHUP)
        while server.workers & before:
            time.sleep(0.05)

        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", "/register-user", "{}", {"Content-Type": "application/json"})

        assert connection.getresponse().status == 403
        connection.close()


def test_a_restart_with_a_configuration_that_is_refused_leaves_all_as_it_is(tmp_path: Path) -> None:
    with MlapiServer(tmp_path) as server:
        (tmp_path / "config.yml").write_text("regisration: {open: false}\n")
        before = settled(server, 1)

        os.kill(server.pid, signal.SIGHUP)

        deadline = time.monotonic() + 20
        while "could not start" not in server.log and time.monotonic() < deadline:
            time.sleep(0.05)
        register(server, 1)
        assert server.workers == before
        assert "regisration" in server.log
