"""A graceful stop loses no usage. A killed process loses the usage of at most about a second."""

import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi import Users
from mlapi.adapters.memory import PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.storage import SqlStorage
from tests.conftest import KEY, SALT
from tests.e2e.server import MlapiServer, Server
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.test_restarts import wait_for_workers

CLIENTS = 4


class Client(threading.Thread):
    """Sends guarded requests on one connection, and records the time of each response.

    Args:
        port: the port of the server.
        path: a path that the guard protects.
        api_key: the credential.
        stop: ends the thread.
    """

    def __init__(self, port: int, path: str, api_key: str, stop: threading.Event) -> None:
        super().__init__()
        self._port = port
        self._path = path
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._stop_requested = stop
        self.acknowledged_at: list[float] = []
        self.unanswered = 0
        """The number of requests without a response. They may have been counted."""
        self.unexpected: list[int] = []

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stop_requested.is_set():
            try:
                connection.connect()
                while not self._stop_requested.is_set() and self._send(connection):
                    pass
            except ConnectionRefusedError:
                time.sleep(0.01)
            connection.close()

    def _send(self, connection: HTTPConnection) -> bool:
        """Send a request. Return whether the connection is still open."""
        try:
            connection.request("GET", self._path, headers=self._headers)
            response = connection.getresponse()
            response.read()
        except (OSError, HTTPException):
            self.unanswered += 1
            return False
        if response.status == 200:
            self.acknowledged_at.append(time.monotonic())
        else:
            self.unexpected.append(response.status)
        return not response.will_close


class Fleet:
    """Several clients. Each has its own user and API key."""

    def __init__(self, url: URL) -> None:
        self._url = url
        with Database(url) as database:
            upgrade(database)
            users = Users(SqlStorage(database).users, PlainCipher())
            self._keys = [self._add_user(users, f"user{number}") for number in range(CLIENTS)]
        self._past: list[Client] = []

    @staticmethod
    def _add_user(users: Users, name: str) -> str:
        user = users.register(username=name, password="correct horse", email=f"{name}@example.com")
        return users.add_api_key(user_id=user.id, name="torture")[1]

    @contextmanager
    def requesting(self, port: int, path: str) -> Iterator[list[Client]]:
        """Run the clients until the block ends."""
        stop = threading.Event()
        clients = [Client(port, path, key, stop) for key in self._keys]
        self._past += clients
        for client in clients:
            client.start()
        try:
            yield clients
        finally:
            stop.set()
            for client in clients:
                client.join()

    @property
    def acknowledged_at(self) -> list[float]:
        return sorted(at for client in self._past for at in client.acknowledged_at)

    @property
    def unanswered(self) -> int:
        return sum(client.unanswered for client in self._past)

    @property
    def unexpected(self) -> list[int]:
        return [status for client in self._past for status in client.unexpected]

    def recorded(self) -> int:
        """Return the number of requests in the database."""
        with Database(self._url) as database:
            return sum(row.requests for row in SqlStorage(database).usage.list_page(limit=1000))


def environ_for(url: URL) -> dict[str, str]:
    return {
        "MLAPI_DATABASE__URL": url.render_as_string(hide_password=False),
        "MLAPI_SECRETS__KEY": KEY,
        "MLAPI_SECRETS__SALT": SALT,
    }


def name_of(url: URL) -> str:
    return "SQLite" if url.drivername == "sqlite" else "PostgreSQL"


def service(url: URL, folder: Path) -> Server:
    return MlapiServer(folder, environ_for(url), "--workers", "2", "--no-access-log")


def service_in_uvicorn(url: URL, folder: Path) -> Server:
    return Server(folder, environ_for(url), "--no-access-log")


def guarded_model(url: URL, folder: Path) -> Server:
    return Server(folder, environ_for(url), "--no-access-log", "--workers", "2", app="tests.torture.guarded_app:app")


@pytest.mark.parametrize("make_server", [service, service_in_uvicorn, guarded_model])
def test_graceful_stops_under_load_lose_no_usage(
    make_server: Callable[[URL, Path], Server],
    durable_url: URL,
    tmp_path: Path,
    short_or_full: ShortOrFull,
    report: Report,
) -> None:
    restarts, seconds = short_or_full(1, 20), short_or_full(1, 3)
    path = "/predict" if make_server is guarded_model else "/verify"
    fleet = Fleet(durable_url)
    server = make_server(durable_url, tmp_path).start()
    try:
        with fleet.requesting(server.port, path):
            for _ in range(restarts):
                time.sleep(seconds)
                if isinstance(server, MlapiServer):
                    before = wait_for_workers(server, 2)
                    os.kill(server.pid, signal.SIGHUP)
                    while server.workers & before:
                        time.sleep(0.05)
                else:
                    server.stop()
                    server.start()
            time.sleep(seconds)
            server.stop()  # while the clients still send requests
    finally:
        server.stop(signal.SIGKILL)

    acknowledged, recorded = len(fleet.acknowledged_at), fleet.recorded()
    report(
        f"usage, {name_of(durable_url)}, {make_server.__name__.replace('_', ' ')}: {restarts} graceful restarts and a"
        f" stop under load, {acknowledged:,} requests acknowledged and {fleet.unanswered} without a response,"
        f" {recorded:,} recorded"
    )
    assert fleet.unexpected == []
    assert acknowledged > 0
    assert acknowledged <= recorded <= acknowledged + fleet.unanswered
    assert "was lost" not in server.log


def test_kills_lose_at_most_a_second_of_usage(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report
) -> None:
    kills = short_or_full(2, 20)
    fleet = Fleet(durable_url)
    server = service(durable_url, tmp_path)
    lost, worst_seconds, recorded = 0, 0.0, 0
    for number in range(kills):
        log_length = len(server.log) if number else 0
        server.start()
        wait_for_workers(server, 2, since=log_length)  # type: ignore[arg-type]  # it is an MlapiServer
        with fleet.requesting(server.port, "/verify") as clients:
            time.sleep(2 + number / kills)
            server.stop(signal.SIGKILL)
            killed_at = time.monotonic()
        before, recorded = recorded, fleet.recorded()
        acknowledged = sorted(at for client in clients for at in client.acknowledged_at)
        missing = len(acknowledged) - (recorded - before)
        assert missing >= -sum(client.unanswered for client in clients)
        if missing > 0:
            lost += missing
            worst_seconds = max(worst_seconds, killed_at - acknowledged[-missing])

    report(
        f"usage, {name_of(durable_url)}: service with 2 workers killed {kills} times under load, {recorded:,} of"
        f" {len(fleet.acknowledged_at):,} requests recorded, {lost / kills:,.0f} lost per kill: those of the last"
        f" {worst_seconds:.2f} s at most"
    )
    assert fleet.unexpected == []
    assert worst_seconds < short_or_full(3, 1)  # the short form shares the processor with other tests


@contextmanager
def locked(file: str) -> Iterator[None]:
    """Keep other connections from writing to an SQLite file."""
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def cause_outage(url: URL, request: pytest.FixtureRequest) -> None:
    """Lock an SQLite file for longer than the service waits, or kill and restart PostgreSQL."""
    if url.drivername == "sqlite":
        with locked(str(url.database)):
            time.sleep(5)
    else:
        postgres = request.getfixturevalue("durable_postgres")
        postgres.signal_all(signal.SIGKILL)
        postgres.start()


def test_outages_lose_no_usage_and_count_none_twice(
    durable_url: URL, tmp_path: Path, short_or_full: ShortOrFull, report: Report, request: pytest.FixtureRequest
) -> None:
    outages, seconds = short_or_full(1, 20), short_or_full(1, 3)
    fleet = Fleet(durable_url)
    server = service_in_uvicorn(durable_url, tmp_path).start()
    try:
        with fleet.requesting(server.port, "/verify"):
            for _ in range(outages):
                time.sleep(seconds)
                cause_outage(durable_url, request)
            time.sleep(seconds)
        server.stop()
    finally:
        server.stop(signal.SIGKILL)

    acknowledged, recorded = len(fleet.acknowledged_at), fleet.recorded()
    unknown = sum(map(int, re.findall(r"usage of (\d+) requests .* may or may not be recorded", server.log)))
    report(
        f"usage, {name_of(durable_url)}: {outages} outages under load, {acknowledged:,} requests acknowledged,"
        f" {recorded:,} recorded, {unknown:,} of them in commits with an unknown outcome"
    )
    assert set(fleet.unexpected) <= {503}
    assert acknowledged - unknown <= recorded <= acknowledged + fleet.unanswered
    assert "was lost" not in server.log
