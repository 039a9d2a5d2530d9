"""Kill the service and its database server under load, repeatedly: every acknowledged change must survive."""

import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from sqlalchemy import URL

from tests.e2e.server import MlapiServer
from tests.postgres_server import PostgresServer
from tests.torture.clients import Client, audited_actions, call, expected_actions, expected_users, stored_users
from tests.torture.conftest import Report, ShortOrFull

CLIENTS = 8
CHANGES_PER_KILL = 260
"""Changes acknowledged before each kill, so that 200 kills cover more than 50,000."""


def make_server(url: URL, folder: Path, workers: int) -> MlapiServer:
    environ = {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_PASSWORDS__SCHEME": "fernet",  # fast, to put more load on the database
        "TMPDIR": str(folder),  # a killed server does not delete its metrics directory
    }
    return MlapiServer(folder, environ, "--workers", str(workers), "--no-access-log")


def wait_until_ready(server: MlapiServer) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            status, _ = call(connection, "GET", "/health/ready")
        except (OSError, HTTPException):
            status = 0
        connection.close()
        if status == 200:
            return
        time.sleep(0.01)
    raise AssertionError(f"not ready within 30 seconds:\n{server.log[-2000:]}")


@contextmanager
def run_clients(clients: Sequence[Client], port: int) -> Iterator[None]:
    """Run the clients; enter the block at a random moment after enough changes were acknowledged."""
    stop = threading.Event()
    enough = sum(client.acknowledged for client in clients) + CHANGES_PER_KILL
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


def check_database(clients: Sequence[Client], url: URL) -> int:
    """Compare all users with the clients' records; return how many unacknowledged requests were applied."""
    stored = stored_users(url)
    applied = sum(client.resolve(stored) for client in clients)
    assert stored == expected_users(clients)
    assert [response for client in clients for response in client.unexpected] == []
    return applied


def summarize(clients: Sequence[Client], recovery_seconds: Sequence[float], *, unresolved: int, applied: int) -> str:
    actions = [action for actions in expected_actions(clients).values() for action in actions]
    return (
        f"{sum(client.acknowledged for client in clients):,} acknowledged changes"
        f" ({actions.count('register'):,} users registered, {actions.count('remove'):,} removed), 0 lost,"
        f" 0 duplicate names, one audit entry each; {applied:,} of {unresolved:,} requests without a response or with"
        f" a 503 were applied; time to recover {statistics.median(recovery_seconds):.2f} s (median),"
        f" {max(recovery_seconds):.2f} s (longest)"
    )


def test_killed_service_loses_no_acknowledged_change(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    is_sqlite = durable_url.drivername == "sqlite"
    clients = [Client(f"client{number}") for number in range(CLIENTS)]
    kills = short_or_full(2, 200 if is_sqlite else 100)
    recovery_seconds: list[float] = []
    unresolved = applied = 0
    server = make_server(durable_url, tmp_path, 1).start()

    try:
        for number in range(kills):
            with run_clients(clients, server.port):
                server.stop(signal.SIGKILL)
                killed = time.monotonic()
            unresolved += sum(client.has_unresolved_request for client in clients)
            server = make_server(durable_url, tmp_path, 2 - number % 2).start()
            wait_until_ready(server)
            recovery_seconds.append(time.monotonic() - killed)
            applied += check_database(clients, durable_url)
    finally:
        server.stop(signal.SIGKILL)

    assert audited_actions(durable_url) == expected_actions(clients)
    assert max(recovery_seconds) < short_or_full(15, 2)  # the short form shares the processor with other tests
    report(
        f"{'SQLite' if is_sqlite else 'PostgreSQL'}: service killed {kills} times (alternately with 1 and 2 workers): "
        + summarize(clients, recovery_seconds, unresolved=unresolved, applied=applied)
    )


def test_killed_database_server_loses_no_acknowledged_change(
    durable_postgres: PostgresServer,
    durable_postgres_url: URL,
    tmp_path: Path,
    short_or_full: ShortOrFull,
    report: Report,
) -> None:
    clients = [Client(f"client{number}") for number in range(CLIENTS)]
    kills = short_or_full(2, 100)
    recovery_seconds: list[float] = []
    unresolved = applied = 0

    with make_server(durable_postgres_url, tmp_path, 2) as server:
        for _ in range(kills):
            with run_clients(clients, server.port):
                durable_postgres.signal_all(signal.SIGKILL)
                durable_postgres.start()
                restarted = time.monotonic()
                wait_until_ready(server)
                recovery_seconds.append(time.monotonic() - restarted)
            unresolved += sum(client.has_unresolved_request for client in clients)
            applied += check_database(clients, durable_postgres_url)

    assert audited_actions(durable_postgres_url) == expected_actions(clients)
    assert sum(client.unanswered for client in clients) == 0  # the service responds while the database is down
    assert max(recovery_seconds) < short_or_full(15, 2)  # the short form shares the processor with other tests
    report(
        f"PostgreSQL: database server killed {kills} times under a service with 2 workers: "
        + summarize(clients, recovery_seconds, unresolved=unresolved, applied=applied)
        + f"; slowest response {max(client.slowest_seconds for client in clients):.1f} s"
    )
