"""Flood a server with slow clients: ``python -m tests.torture.slow_clients PORT KIND COUNT...``.

Runs in a separate process. It opens the connections, prints ``open`` and holds them until its standard input closes.
"""

import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

HEAD = b"POST /register-user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n"
FIRST_BYTES: dict[str, bytes] = {
    "silent": b"",
    "slow-head": HEAD,
    "slow-body": HEAD + b'\r\n{"username": "',
    "never-reading": b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
}
DRIP = {"slow-head": b"x", "slow-body": b"x"}
DRIP_INTERVAL_SECONDS = 2.0
CONNECTIONS_PER_SECOND = 2_000
"""At a higher rate, connections would wait in the kernel's listen queue, where the service does not see them."""


def connect(port: int, kind: str) -> socket.socket:
    connection = socket.socket()
    if kind == "never-reading":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    with suppress(BlockingIOError):
        connection.send(FIRST_BYTES[kind])
    return connection


def main(port: int, counts: dict[str, int]) -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    begin = time.monotonic()
    connections: list[tuple[str, socket.socket]] = []
    for number in range(max(counts.values())):
        connections += [(kind, connect(port, kind)) for kind, count in counts.items() if number < count]
        time.sleep(max(0.0, len(connections) / CONNECTIONS_PER_SECOND - (time.monotonic() - begin)))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    dripping = {connection: DRIP[kind] for kind, connection in connections if kind in DRIP}
    while not select.select([sys.stdin], [], [], 0)[0]:
        begin = time.monotonic()
        for_each_open(dripping, lambda connection: connection.send(dripping[connection]))
        time.sleep(max(0.0, DRIP_INTERVAL_SECONDS - (time.monotonic() - begin)))


def for_each_open(connections: dict[socket.socket, bytes], action: Callable[[socket.socket], object]) -> None:
    """Call the action with each connection; forget connections that the server has closed."""
    for connection in list(connections):
        try:
            action(connection)
        except BlockingIOError:
            pass
        except OSError:
            del connections[connection]


if __name__ == "__main__":
    kinds = sys.argv[2::2]
    main(int(sys.argv[1]), dict(zip(kinds, map(int, sys.argv[3::2]), strict=True)))
