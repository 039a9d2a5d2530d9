"""The number of round trips to PostgreSQL for a login."""

import socket

from sqlalchemy import URL

from mlapi import Authenticator, InvalidCredentialsError, Users
from mlapi.adapters.memory import InMemoryTokens, PlainCipher
from mlapi.adapters.sql.attempts import SqlAttempts
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqlUserRepository
from mlapi.adapters.sql.schema import upgrade
from mlapi.application.login_throttle import AttemptLimits, FixedWindowAttemptLimiter
from tests.cut_connections import CuttingProxy

PASSWORD = "difference engine"
READY_FOR_QUERY = b"Z\0\0\0\5"  # ends each round trip: PostgreSQL 18, section 54.7
WARM_UP_LOGINS = 10
"""psycopg prepares a statement after it has been executed a few times."""


class CountingProxy(CuttingProxy):
    """Counts the round trips through its connections."""

    round_trips = 0

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        super()._forward(CountedSocket(self, source), target)  # type: ignore[arg-type]  # has the methods in use


class CountedSocket:
    def __init__(self, proxy: CountingProxy, inner: socket.socket) -> None:
        self._proxy = proxy
        self._inner = inner

    def recv(self, size: int) -> bytes:
        data = self._inner.recv(size)
        self._proxy.round_trips += data.count(READY_FOR_QUERY)
        return data

    def shutdown(self, how: int) -> None:
        self._inner.shutdown(how)

    def close(self) -> None:
        self._inner.close()


def test_login_takes_two_round_trips_and_a_wrong_one_three(postgres_url: URL) -> None:
    assert postgres_url.port is not None
    with CountingProxy(postgres_url.port) as proxy, Database(postgres_url.set(port=proxy.port)) as database:
        upgrade(database)
        users = Users(SqlUserRepository(database), PlainCipher())
        users.register(username="ada", password=PASSWORD, email="ada@example.com")
        limits = AttemptLimits(per_address=None, per_name=None, per_name_and_address=None)
        limiter = FixedWindowAttemptLimiter(SqlAttempts(database), limits)
        authenticator = Authenticator(users, InMemoryTokens(), limiter)

        def count(password: str, address: str = "192.0.2.1") -> int:
            before = proxy.round_trips
            try:
                authenticator.log_in(username="ada", password=password, address=address)
            except InvalidCredentialsError:
                assert password != PASSWORD
            return proxy.round_trips - before

        for number in range(WARM_UP_LOGINS):
            count(PASSWORD, f"192.0.2.{number}")
            count("wrong")

        counted = [count(PASSWORD), count(PASSWORD, "198.51.100.7"), count("wrong")]

    assert counted == [2, 3, 3]


def test_counted_round_trips_include_every_statement(postgres_url: URL) -> None:
    assert postgres_url.port is not None
    with CountingProxy(postgres_url.port) as proxy, Database(postgres_url.set(port=proxy.port)) as database:
        database.read_batch(lambda connection: connection.execute("SELECT 1").fetchall())
        before = proxy.round_trips

        database.read_batch(lambda connection: [connection.execute("SELECT 1").fetchall() for _ in range(3)])

        assert proxy.round_trips - before == 3
