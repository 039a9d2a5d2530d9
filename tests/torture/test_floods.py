"""Floods: clients that are slow, silent or never read; more registrations than cores, more connections than files."""

import http.client
import math
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.server import ROOT, MlapiServer
from tests.torture.clients import ask, new_user

CHEAP = {"MLAPI_PASSWORDS__SCHEME": "fernet"}


def files_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - there are thousands, and nothing is wanted of them


class Toggling:
    """Clients that toggle one user each while something else happens, and how long that takes them."""

    def __init__(self, server: MlapiServer, clients: int = 4) -> None:
        self._server = server
        self._stop = threading.Event()
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._toggle, args=(number,)) for number in range(clients)]

    def _toggle(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        _, created = ask(connection, "POST", "/register-user", new_user(f"toggled{number}"))
        while not self._stop.is_set():
            begun = time.perf_counter()
            status, _ = ask(connection, "PUT", f"/toggle-user-permission/{created['user_id']}/0")
            self.seconds.append(time.perf_counter() - begun)
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
    def p99(self) -> float:
        """Milliseconds."""
        return sorted(self.seconds)[math.ceil(len(self.seconds) * 0.99) - 1] * 1000


@contextmanager
def flood(server: MlapiServer, **counts: int) -> Iterator[None]:
    """Hold so many connections of each kind meanwhile."""
    arguments = [word for kind, count in counts.items() for word in (kind.replace("_", "-"), str(count))]
    command = [sys.executable, "-m", "tests.torture.flood", str(server.port), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        try:
            yield
        finally:
            process.communicate(timeout=30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlapiServer]:
    with MlapiServer(tmp_path, CHEAP, "--no-access-log") as server:
        yield server


def test_slow_silent_and_deaf_connections_hinder_nobody_and_are_closed_in_time(
    server: MlapiServer, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    each = times(75, 2_000)
    wanted = 4 * each
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < wanted + 200:
        pytest.skip(f"the system lets a process have no {wanted:,} files: raise its hard limit (ulimit -Hn)")
    (worker,) = server.workers
    with Toggling(server) as toggling:
        before = files_of(worker)
        with flood(server, silent=each, slow_head=each, slow_body=each, never_reading=each):
            opened = time.monotonic()
            held = 0
            while (files := files_of(worker)) > before and time.monotonic() - opened < 30:
                held = max(held, files - before)
                time.sleep(0.2)
            closed = time.monotonic() - opened
        memory = server.peak_memory_mib(worker)

    tell(
        f"flood: {held:,} of {wanted:,} slow, silent and never-reading connections held, all closed {closed:.1f} s"
        f" after the last was opened; meanwhile {len(toggling.seconds):,} toggles, p99 {toggling.p99:.0f} ms;"
        f" the worker took {memory:.0f} MiB at most"
    )
    assert held > 0.9 * wanted
    assert closed < times(17, 15)  # beside other tests the system takes its time to hand them over
    assert set(toggling.statuses) == {200}
    assert toggling.p99 < times(1_000, 100)
    assert "Traceback" not in server.log
    assert server.workers == {worker}


def test_many_registrations_at_once_leave_memory_and_toggles_bounded(
    tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    parallel, each = times(100, 500), times(1, 4)
    with MlapiServer(tmp_path, {}, "--no-access-log") as server, Toggling(server, clients=2) as toggling:
        (worker,) = server.workers
        before = server.peak_memory_mib(worker)

        def register(number: int) -> Counter[int]:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            statuses = Counter(
                ask(connection, "POST", "/register-user", new_user(f"u{number}-{turn}"))[0] for turn in range(each)
            )
            connection.close()
            return statuses

        with ThreadPoolExecutor(parallel) as pool:
            statuses = sum(pool.map(register, range(parallel)), Counter[int]())
        grown = server.peak_memory_mib(worker) - before

    tell(
        f"registrations with argon2id: {parallel} at once, {statuses[201]:,} made and {statuses[503]:,} told to come"
        f" again, {grown:.0f} MiB more memory; meanwhile {len(toggling.seconds):,} toggles, p99 {toggling.p99:.0f} ms"
    )
    assert set(statuses) <= {201, 503}
    assert statuses[201] > 0
    assert grown < 19 * len(os.sched_getaffinity(0)) + 25  # 19 MiB for each hashing thread; and the connections
    assert set(toggling.statuses) == {200}
    assert toggling.p99 < times(1_000, 250)


def test_a_worker_that_has_no_files_left_answers_whom_it_knows_and_recovers(
    server: MlapiServer, tell: Callable[[str], None]
) -> None:
    (worker,) = server.workers
    known = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    _, created = ask(known, "POST", "/register-user", new_user("ada"))
    limit = files_of(worker) + 20
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    held = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(200)]
    time.sleep(1)
    full = files_of(worker)
    toggled, _ = ask(known, "PUT", f"/toggle-user-permission/{created['user_id']}/0")
    for connection in held:
        connection.close()
    freed = time.monotonic()
    status = 0
    while status != 200 and time.monotonic() - freed < 10:
        try:
            anew = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            status, _ = ask(anew, "GET", "/health/ready")
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        anew.close()
    recovered = time.monotonic() - freed
    known.close()

    tell(
        f"file descriptors: {full} of {limit} in use with 200 more connections wanted, a connection that was there is"
        f" answered, new ones {recovered:.2f} s after the others have gone"
    )
    assert full >= limit - 2
    assert toggled == 200
    assert recovered < 2
    assert server.workers == {worker}
    assert "Traceback" not in server.log
