"""Floods: clients that are slow, silent or never read, pipelined requests, registrations, and too many connections."""

import http.client
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import pytest
import requests

from tests.e2e.server import ROOT, MlapiServer, Server
from tests.torture.clients import call, new_user
from tests.torture.conftest import Report, ShortOrFull

FAST_PASSWORDS = {"MLAPI_PASSWORDS__SCHEME": "fernet"}
ALL_FROM_ONE_ADDRESS = ("--connections-per-address", "10000")


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - faster: there can be thousands of entries


class TogglingClients:
    """Clients that each toggle one user during the block and measure every request."""

    def __init__(self, server: MlapiServer, clients: int = 4) -> None:
        self._server = server
        self._stop = threading.Event()
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._toggle, args=(number,)) for number in range(clients)]

    def _toggle(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        _, created = call(connection, "POST", "/register-user", new_user(f"toggled{number}"))
        while not self._stop.is_set():
            begin = time.perf_counter()
            status, _ = call(connection, "PUT", f"/toggle-user-permission/{created['user_id']}/0")
            self.seconds.append(time.perf_counter() - begin)
            self.statuses[status] += 1
        connection.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def p99_ms(self) -> float:
        """Return the 99th percentile of the request durations."""
        return sorted(self.seconds)[math.ceil(len(self.seconds) * 0.99) - 1] * 1000


class NewClients:
    """A client at another address that opens a connection for each request during the block, and measures each."""

    def __init__(self, server: Server, address: str = "127.0.0.2", path: str = "/health/ready") -> None:
        self._server, self._address, self._path = server, address, path
        self._stop = threading.Event()
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._request)

    def _request(self) -> None:
        while not self._stop.is_set():
            begin = time.perf_counter()
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._server.port, timeout=60, source_address=(self._address, 0)
            )
            status, _ = call(connection, "GET", self._path)
            connection.close()
            self.seconds.append(time.perf_counter() - begin)
            self.statuses[status] += 1
            time.sleep(0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()


def flood(server: Server, **counts: int) -> AbstractContextManager[None]:
    """During the block, let another process hold the given number of connections of each kind open."""
    arguments = [word for kind, count in counts.items() for word in (kind.replace("_", "-"), str(count))]
    return running_clients("slow_clients", str(server.port), *arguments)


def pipelining_flood(server: Server, kind: str, connections: int, repeat: int) -> AbstractContextManager[None]:
    """During the block, let another process send pipelined requests on each of its connections."""
    return running_clients("pipelining_clients", str(server.port), kind, str(connections), str(repeat))


@contextmanager
def running_clients(module: str, *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-m", f"tests.torture.{module}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield
        finally:
            process.communicate(timeout=30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlapiServer]:
    with MlapiServer(tmp_path, FAST_PASSWORDS, "--no-access-log", *ALL_FROM_ONE_ADDRESS) as server:
        yield server


def test_slow_connections_are_closed_without_blocking_others(
    server: MlapiServer, short_or_full: ShortOrFull, report: Report
) -> None:
    each = short_or_full(75, 2_000)
    total = 4 * each
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < total + 200:
        pytest.skip(f"a process may not open {total:,} files: raise the hard limit (ulimit -Hn)")
    (worker,) = server.workers
    with TogglingClients(server) as toggling:
        before = count_descriptors(worker)
        with flood(server, silent=each, slow_head=each, slow_body=each, never_reading=each):
            opened = time.monotonic()
            held = 0
            while (descriptors := count_descriptors(worker)) > before and time.monotonic() - opened < 30:
                held = max(held, descriptors - before)
                time.sleep(0.2)
            closed = time.monotonic() - opened
        memory = server.peak_memory_mib(worker)

    report(
        f"flood: {held:,} of {total:,} slow, silent and never-reading connections held, all closed {closed:.1f} s"
        f" after the last one was opened; {len(toggling.seconds):,} toggles at the same time, p99"
        f" {toggling.p99_ms:.0f} ms; peak memory of the worker {memory:.0f} MiB"
    )
    assert held > 0.9 * total
    assert closed < short_or_full(20, 15)  # the short form shares the processor with other tests
    assert set(toggling.statuses) == {200}
    assert toggling.p99_ms < short_or_full(1_000, 100)
    assert "Traceback" not in server.log
    assert server.workers == {worker}


def test_memory_and_latency_stay_bounded_in_registration_flood(
    tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    parallel, each = short_or_full(100, 500), short_or_full(1, 4)
    with MlapiServer(tmp_path, {}, "--no-access-log") as server, TogglingClients(server, clients=2) as toggling:
        (worker,) = server.workers
        before = server.peak_memory_mib(worker)

        def register(number: int) -> Counter[int]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            statuses = Counter(
                call(connection, "POST", "/register-user", new_user(f"u{number}-{turn}"))[0] for turn in range(each)
            )
            connection.close()
            return statuses

        with ThreadPoolExecutor(parallel) as pool:
            statuses = sum(pool.map(register, range(parallel)), Counter[int]())
        growth_mib = server.peak_memory_mib(worker) - before

    report(
        f"registrations with argon2id: {parallel} at a time, {statuses[201]:,} created and {statuses[503]:,} rejected"
        f" with 503, {growth_mib:.0f} MiB more memory; {len(toggling.seconds):,} toggles at the same time, p99"
        f" {toggling.p99_ms:.0f} ms"
    )
    assert set(statuses) <= {201, 503}
    assert statuses[201] > 2 * len(os.sched_getaffinity(0))  # all hashing threads were busy
    assert growth_mib < 19 * len(os.sched_getaffinity(0)) + 25  # 19 MiB per hashing thread, 25 MiB for connections
    assert set(toggling.statuses) == {200}
    assert toggling.p99_ms < short_or_full(1_000, 250)


def test_worker_recovers_from_running_out_of_descriptors(server: MlapiServer, report: Report) -> None:
    (worker,) = server.workers
    existing = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    _, created = call(existing, "POST", "/register-user", new_user("ada"))
    call(existing, "GET", "/users")  # in local mode, the first management request of a connection needs a descriptor
    limit = count_descriptors(worker) + 20
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(200)]
    deadline = time.monotonic() + 30
    while (used := count_descriptors(worker)) < limit - 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    toggled, _ = call(existing, "PUT", f"/toggle-user-permission/{created['user_id']}/0")
    for connection in connections:
        connection.close()
    closed = time.monotonic()
    status = 0
    while status != 200 and time.monotonic() - closed < 10:
        try:
            new = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            status, _ = call(new, "GET", "/health/ready")
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        new.close()
    recovery_seconds = time.monotonic() - closed
    existing.close()

    report(
        f"file descriptors: {used} of {limit} used while 200 clients connect; an existing connection is still"
        f" served, a new one is served {recovery_seconds:.2f} s after the clients disconnect"
    )
    assert used >= limit - 2
    assert toggled == 200
    assert recovery_seconds < 2
    assert server.workers == {worker}
    assert "Traceback" not in server.log


# --- pipelined requests

MAX_SECONDS_SHORT_FORM = 5
"""The short form shares the processor with other tests."""


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("small", ((60, 1_000), (60, 9_600))),
        ("small", ((200, 200), (1_000, 200))),
        ("small", ((200, 1_500), (1_000, 1_500))),  # about 64 KiB on each connection
        ("unread", ((60, 1_000), (1_000, 1_000))),
        ("large-unread", ((60, 10), (1_000, 10))),
        ("large-body", ((60, 10), (1_000, 100))),
        ("long-header", ((60, 10), (1_000, 100))),
        ("many-headers", ((60, 10), (1_000, 10))),
        ("small-chunks", ((60, 10), (1_000, 100))),
        ("long-trailer", ((60, 1), (1_000, 1))),
    ],
)
def test_pipelined_requests_use_little_memory_and_time(
    server: MlapiServer, short_or_full: ShortOrFull, report: Report, kind: str, sizes: tuple[tuple[int, int], ...]
) -> None:
    connections, repeat = sizes[short_or_full(0, 1)]
    (worker,) = server.workers
    before = server.peak_memory_mib(worker)
    with NewClients(server) as clients:
        with pipelining_flood(server, kind, connections, repeat):
            time.sleep(short_or_full(1, 15))
        memory = server.peak_memory_mib(worker) - before

    report(
        f"pipelining ({kind}): {connections:,} connections with {repeat:,} requests each, whose responses are never"
        f" read: {memory:.0f} MiB more memory; {len(clients.seconds):,} new clients at the same time, answered within"
        f" {max(clients.seconds):.2f} s"
    )
    assert memory < 200
    assert set(clients.statuses) == {200}
    assert max(clients.seconds) < short_or_full(MAX_SECONDS_SHORT_FORM, 1)
    assert "Traceback" not in server.log
    assert server.workers == {worker}


def test_one_address_at_its_limit_does_not_disturb_others(
    tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    limit = short_or_full(50, 1_000)
    with MlapiServer(tmp_path, FAST_PASSWORDS, "--no-access-log", "--connections", str(10 * limit)) as server:
        with (
            NewClients(server, "127.0.0.2") as second,
            NewClients(server, "127.0.0.3") as third,
            flood(server, silent=2 * limit),
        ):
            rejected = Counter[int]()
            for _ in range(10):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
                try:
                    rejected[call(connection, "GET", "/health/live")[0]] += 1
                except (OSError, http.client.HTTPException):  # far above the limit, the connection is closed
                    rejected[0] += 1
                connection.close()
            time.sleep(short_or_full(1, 5))
        log = server.log
        seconds = second.seconds + third.seconds

    report(
        f"{2 * limit:,} connections from one address, {limit:,} allowed: its other requests are rejected"
        f" ({rejected.total()} of 10); {len(seconds):,} requests from two other addresses, answered within"
        f" {max(seconds):.2f} s"
    )
    assert set(rejected) <= {0, 503}
    assert set(second.statuses + third.statuses) == {200}
    assert max(seconds) < short_or_full(MAX_SECONDS_SHORT_FORM, 1)
    assert log.count("--connections-per-address") == 1
    assert f"127.0.0.1 has more than {limit} connections" in log


@pytest.mark.parametrize("server_class", [MlapiServer, Server], ids=["mlapi serve", "uvicorn"])
def test_reset_of_unread_responses_causes_no_server_error(
    server_class: type[Server], tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    attempts = short_or_full(20, 500)
    with server_class(tmp_path, FAST_PASSWORDS) as server:
        for number in range(attempts):
            request = (b"GET /openapi.json", b"GET /health/ready")[number % 2] + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(request * 100)
                time.sleep(0.02 * (number % 4))
                if number % 3:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + 10
        while 'status="499"' not in (metrics := requests.get(f"{server.base}/metrics", timeout=5).text):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        log = server.log

    report(f"{server_class.__name__}: {attempts} times 100 responses were not read: no server error, no traceback")
    assert 'status="500"' not in metrics
    assert "Traceback" not in log
    assert '" 499' in log
