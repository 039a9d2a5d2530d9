"""The service and its database server are killed under load, again and again: what was acknowledged is there."""

import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from sqlalchemy import URL

from tests.e2e.server import MlapiServer
from tests.postgres_server import PostgresServer
from tests.torture.clients import Client, ask, known_actions, known_users, stored_users, told_actions

CLIENTS = 8
PER_KILL = 260
"""Changes that are acknowledged before each kill: 200 kills are of more than 50,000."""
READY_WITHIN = 2.0
"""Seconds."""


def server_on(url: URL, folder: Path, workers: int) -> MlapiServer:
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # what is tried is the database, not the hash
        "TMPDIR": str(folder),  # who is killed leaves its metrics behind
    }
    return MlapiServer(folder, environ, "--workers", str(workers), "--no-access-log")


def wait_until_ready(server: MlapiServer) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            status, _ = ask(connection, "GET", "/health/ready")
        except (OSError, HTTPException):
            status = 0
        connection.close()
        if status == 200:
            return
        time.sleep(0.01)
    raise AssertionError(f"not ready within 30 s:\n{server.log[-2000:]}")


@contextmanager
def working(clients: Sequence[Client], port: int) -> Iterator[None]:
    """The clients work meanwhile. Begins when they have so many changes done, at a moment that chance has chosen."""
    stop = threading.Event()
    enough = sum(client.acknowledged for client in clients) + PER_KILL
    threads = [threading.Thread(target=client.work, args=(port, stop)) for client in clients]
    for thread in threads:
        thread.start()
    while sum(client.acknowledged for client in clients) < enough and any(thread.is_alive() for thread in threads):
        time.sleep(0.001)
    time.sleep(random.random() * 0.02)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def settled(clients: Sequence[Client], url: URL) -> int:
    """Compare the database with what the clients know, all of it; return how many of their open requests are done."""
    stored = stored_users(url)
    done = sum(client.settle(stored) for client in clients)
    assert stored == known_users(clients)
    assert [wrong for client in clients for wrong in client.wrong] == []
    return done


def figures(clients: Sequence[Client], restarts: Sequence[float], *, in_doubt: int, done: int) -> str:
    actions = [action for known in known_actions(clients).values() for action in known]
    return (
        f"{sum(client.acknowledged for client in clients):,} acknowledged changes"
        f" ({actions.count('register'):,} users registered, {actions.count('remove'):,} removed), 0 lost,"
        f" 0 names twice, each once in the audit trail; of {in_doubt:,} requests that were cut off or answered"
        f" 503 {done:,} were done;"
        f" ready again after {statistics.median(restarts):.2f} s, {max(restarts):.2f} s at most"
    )


def test_nothing_acknowledged_is_lost_when_the_service_is_killed(
    durable_url: URL, tmp_path: Path, times: Callable[[int, int], int], tell: Callable[[str], None]
) -> None:
    is_sqlite = durable_url.drivername == "sqlite"
    clients = [Client(f"client{number}") for number in range(CLIENTS)]
    kills = times(2, 200 if is_sqlite else 100)
    restarts: list[float] = []
    in_doubt = done = 0
    server = server_on(durable_url, tmp_path, 1).start()

    try:
        for number in range(kills):
            with working(clients, server.port):
                server.stop(signal.SIGKILL)
                killed = time.monotonic()
            in_doubt += sum(client.has_doubt for client in clients)
            server = server_on(durable_url, tmp_path, 2 - number % 2).start()
            wait_until_ready(server)
            restarts.append(time.monotonic() - killed)
            done += settled(clients, durable_url)
    finally:
        server.stop(signal.SIGKILL)

    assert told_actions(durable_url) == known_actions(clients)
    assert (max if times(0, 1) else min)(restarts) < READY_WITHIN  # beside other tests the quickest says more
    tell(
        f"{'SQLite' if is_sqlite else 'PostgreSQL'}: {kills} kills of the service (1 and 2 workers in turn), "
        + figures(clients, restarts, in_doubt=in_doubt, done=done)
    )


def test_nothing_acknowledged_is_lost_when_the_database_server_is_killed(
    durable_postgres: PostgresServer,
    durable_postgres_url: URL,
    tmp_path: Path,
    times: Callable[[int, int], int],
    tell: Callable[[str], None],
) -> None:
    clients = [Client(f"client{number}") for number in range(CLIENTS)]
    kills = times(2, 100)
    restarts: list[float] = []
    in_doubt = done = 0

    with server_on(durable_postgres_url, tmp_path, 2) as server:
        for _ in range(kills):
            with working(clients, server.port):
                durable_postgres.signal_all(signal.SIGKILL)
                durable_postgres.start()
                up = time.monotonic()
                wait_until_ready(server)
                restarts.append(time.monotonic() - up)
            in_doubt += sum(client.has_doubt for client in clients)
            done += settled(clients, durable_postgres_url)

    assert told_actions(durable_postgres_url) == known_actions(clients)
    assert sum(client.cut_off for client in clients) == 0  # the service answers meanwhile
    assert (max if times(0, 1) else min)(restarts) < READY_WITHIN  # beside other tests the quickest says more
    tell(
        f"PostgreSQL: {kills} kills of the database server under a service of 2 workers, "
        + figures(clients, restarts, in_doubt=in_doubt, done=done)
        + f"; the slowest answer took {max(client.slowest for client in clients):.1f} s"
    )
