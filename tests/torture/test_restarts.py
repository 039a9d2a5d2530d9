"""Graceful restarts: the port stays open and no request is lost."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.server import ROOT, MlapiServer
from tests.torture.clients import call, new_user
from tests.torture.conftest import Report, ShortOrFull
from tests.waiting import wait_until

CLIENTS = 8


class Client(threading.Thread):
    """Toggles a user on one connection. Like HTTP libraries, it opens another only when the server closes the first."""

    def __init__(self, port: int, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._port = port
        self._number = number
        self._stop_requested = stop
        self.statuses: Counter[int] = Counter()
        self.connections = 0
        self.errors: list[str] = []

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop_requested.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
                self.connections += 1
            flag = self.statuses.total() % 2
            try:
                # No retries, so that every dropped request is counted.
                connection.request("PUT", f"/toggle-user-permission/{self._number + 1}/{flag}")
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
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
def test_graceful_restart_under_load_loses_no_request(
    workers: int, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    restarts, min_requests = short_or_full(2, 20), short_or_full(1_000, 30_000)
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
            before = wait_for_workers(server, workers)
            os.kill(server.pid, signal.SIGHUP)
            while server.workers & before and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not wait_for_workers(server, workers) & before
        while sum(client.statuses.total() for client in clients) < min_requests and time.monotonic() < deadline:
            time.sleep(0.1)
        stop.set()
        for client in clients:
            client.join()

    statuses = sum((client.statuses for client in clients), Counter())
    errors = [error for client in clients for error in client.errors]
    connections = sum(client.connections for client in clients)
    report(
        f"restarts, {workers} worker(s): {restarts} under load, {statuses.total():,} requests on {connections}"
        f" connections, {len(errors)} without a response, {statuses.total() - statuses[200]} with a status other than"
        " 200"
    )
    assert errors == []
    assert set(statuses) == {200}
    assert statuses.total() >= min_requests
    assert connections >= CLIENTS * (1 + restarts)
    assert "Traceback" not in server.log


def wait_for_workers(server: MlapiServer, count: int, *, since: int = 0) -> set[int]:
    """Wait until exactly this many workers exist and all have started; return their process ids.

    If workers were killed before, ``since`` is the length of the log at that time: they may have ended while starting.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers = server.workers
        log = server.log[since:]
        started = log.count("Application startup complete")
        if len(workers) == count <= started == log.count("Started server process"):
            return workers
        time.sleep(0.05)
    raise AssertionError(f"the server does not have {count} workers:\n{server.log[-2000:]}")


def register(server: MlapiServer, number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    status, _ = call(connection, "POST", "/register-user", new_user(f"u{number}"))
    assert status == 201
    connection.close()


def test_shutdown_under_load_answers_accepted_requests(tmp_path: Path) -> None:
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

    assert {error.partition("(")[0] for client in clients for error in client.errors} == {"ConnectionRefusedError"}
    assert all(set(client.statuses) == {200} for client in clients)
    with pytest.raises(ConnectionRefusedError):
        register(server, CLIENTS)


class Storm:
    """Opens 1,000 connections per second in another process, and sends a request on each."""

    def __init__(self, port: int) -> None:
        command = [sys.executable, "-m", "tests.torture.connection_storm", str(port), "1000"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def stop(self) -> Counter[str]:
        """Return the number of connections by outcome."""
        output, _ = self._process.communicate(b"", timeout=60)
        return Counter(json.loads(output))


def wait_for_exit(server: MlapiServer) -> int:
    """Wait until the server exits by itself; return its exit code."""
    assert server._process is not None
    return server._process.wait(60)


def replace_workers(server: MlapiServer, workers: set[int]) -> None:
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: not server.workers & workers, 60)


STORM_OPTIONS = ("--no-access-log", "--connections-per-address", "10000")
"""All connections come from one address. On a slow machine, more than a tenth of the maximum may be open at once."""
FAST_HASHES = {"MLAPI_PASSWORDS__SCHEME": "fernet"}


@pytest.mark.parametrize("workers", [1, 2])
def test_restart_cuts_no_new_connection(
    workers: int, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * short_or_full(1, 12)
    if short_or_full(0, 1) == 0:
        signals = signals[workers - 1 : workers]
    outcomes: Counter[str] = Counter()
    for number in signals:
        with MlapiServer(tmp_path, FAST_HASHES, "--workers", str(workers), *STORM_OPTIONS) as server:
            before = wait_for_workers(server, workers)
            storm = Storm(server.port)
            time.sleep(1.5)

            if number == signal.SIGHUP:
                replace_workers(server, before)
            else:
                server.stop(number)

            outcomes += storm.stop()
        assert "Traceback" not in server.log
        server._log.unlink()

    report(
        f"connections, {workers} worker(s): {len(signals)} restarts (SIGTERM, SIGINT, SIGHUP) under 1,000 new"
        f" connections per second, {outcomes['served']:,} served, {outcomes['refused']:,} refused,"
        f" {outcomes.total() - outcomes['served'] - outcomes['refused']} cut"
    )
    assert set(outcomes) <= {"served", "refused"}
    assert outcomes["served"] >= 100 * len(signals)


def test_sigterm_during_startup_cuts_no_connection(tmp_path: Path, short_or_full: ShortOrFull, report: Report) -> None:
    starts = short_or_full(2, 40)
    outcomes: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    for number in range(starts):
        server = MlapiServer(tmp_path, FAST_HASHES, "--workers", "2", *STORM_OPTIONS)
        server._spawn()
        storm = Storm(server.port)
        wait_until(lambda server=server: "Started server process" in server.log, 60)  # type: ignore[misc]  # of the default
        time.sleep(2 * number / starts)

        os.kill(server.pid, signal.SIGTERM)

        codes[wait_for_exit(server)] += 1
        outcomes += storm.stop()
        server._log.unlink()

    report(
        f"startup: {starts} services stopped within 2 s of the start of their worker: {outcomes['refused']:,}"
        f" connections refused, {outcomes['served']:,} served,"
        f" {outcomes.total() - outcomes['served'] - outcomes['refused']} cut"
    )
    assert set(outcomes) <= {"served", "refused"}
    assert set(codes) == {0}


def test_workers_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    with MlapiServer(tmp_path, {}, "--workers", "2") as server:
        workers = wait_for_workers(server, 2)

        os.kill(server.pid, signal.SIGKILL)

        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_restart_reads_the_current_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("registration: {open: true}\n")
    with MlapiServer(tmp_path) as server:
        register(server, 1)
        (tmp_path / "config.yml").write_text("registration: {open: false}\nmanagement: {local: false}\n")
        before = wait_for_workers(server, 1)
        os.kill(server.pid, signal.SIGHUP)
        deadline = time.monotonic() + 60
        while server.workers & before and time.monotonic() < deadline:
            time.sleep(0.05)

        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("POST", "/register-user", "{}", {"Content-Type": "application/json"})

        assert connection.getresponse().status == 403
        connection.close()


def test_restart_with_invalid_configuration_changes_nothing(tmp_path: Path) -> None:
    with MlapiServer(tmp_path) as server:
        (tmp_path / "config.yml").write_text("regisration: {open: false}\n")
        before = wait_for_workers(server, 1)

        os.kill(server.pid, signal.SIGHUP)

        deadline = time.monotonic() + 30
        while "could not start" not in server.log and time.monotonic() < deadline:
            time.sleep(0.05)
        register(server, 1)
        assert server.workers == before
        assert "regisration" in server.log

        for worker in before:
            os.kill(worker, signal.SIGKILL)

        assert wait_for_exit(server) == 3
        with pytest.raises(ConnectionRefusedError):
            register(server, 2)
        *_, reason, last = server.log.splitlines()
        assert "regisration" in reason
        assert "no worker is serving, and a new one failed to start (exit code 3); exiting" in last
