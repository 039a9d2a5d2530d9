"""The limit of connections from one address."""

import asyncio
import ipaddress

import pytest

from mlapi.domain.addresses import UNIX_PEER
from mlapi.entrypoints.server.addresses import ConnectionsPerAddress, default_per_address
from mlapi.entrypoints.server.connections import Connection, unix_server


def test_connections_are_counted_per_address() -> None:
    connections = ConnectionsPerAddress(2)

    surplus = [connections.add("192.0.2.1") for _ in range(4)]
    assert (surplus, connections.add("192.0.2.2")) == ([0, 0, 1, 2], 0)

    for _ in range(3):
        connections.remove("192.0.2.1")
    assert [connections.add("192.0.2.1") for _ in range(2)] == [0, 1]


def test_ipv6_network_counts_as_one_address() -> None:
    connections = ConnectionsPerAddress(1)

    assert connections.add("2001:db8::1") == 0
    assert connections.add("2001:db8::ffff:1") == 1
    assert connections.add("2001:db8:0:1::1") == 0
    assert (connections.add("::ffff:192.0.2.1"), connections.add("192.0.2.1")) == (0, 1)


def test_trusted_proxies_are_not_limited(caplog: pytest.LogCaptureFixture) -> None:
    connections = ConnectionsPerAddress(1, [ipaddress.ip_network("10.0.0.0/8")])

    assert [connections.add("10.1.2.3") for _ in range(5)] == [0] * 5
    assert [connections.add("::ffff:10.1.2.3") for _ in range(5)] == [0] * 5
    assert connections.add("a path") == 0
    assert connections.add("a path") == 1
    assert [record.args for record in caplog.records] == [("a path", 1)]


def test_exceeded_limit_is_logged_once_per_address(caplog: pytest.LogCaptureFixture) -> None:
    connections = ConnectionsPerAddress(1)

    for number in range(200):
        for _ in range(3):
            connections.add(f"192.0.2.{number}")

    assert len(caplog.records) == 100
    assert caplog.messages[0] == (
        "192.0.2.0 has more than 1 connections to this worker, so new ones get 503: if it is a proxy, add it to"
        " http.trusted_proxies; otherwise, --connections-per-address sets the limit"
    )


@pytest.mark.parametrize(
    ("max_connections", "expected"),
    [(10_000, 1_000), (200, 20), (100, 10), (50, 10), (20, 10), (10, 5), (2, 1), (1, 1)],
)
def test_one_address_may_use_a_tenth_by_default(max_connections: int, expected: int) -> None:
    assert default_per_address(max_connections) == expected


def test_unix_sockets_are_not_limited() -> None:
    connections = ConnectionsPerAddress(1)

    assert [connections.add("unix") for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(("socket_name", "address"), [("/run/mlapi.sock", UNIX_PEER), (("192.0.2.1", 80), "")])
def test_peers_of_a_unix_socket_have_one_address(socket_name: object, address: str) -> None:
    """Old versions of uvicorn do not set ``server`` for a Unix socket."""
    connection = Connection.__new__(Connection)
    connection.client = None
    connection.server = unix_server(asyncio.BaseTransport({"sockname": socket_name}))

    assert connection.address == address
