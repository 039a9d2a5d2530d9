"""A flood as a program of its own: ``python -m tests.torture.flood PORT KIND COUNT...``.

Opens so many connections of each kind, says ``open``, and goes on as each kind does until its standard input ends.
"""

import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

HEAD = b"POST /register-user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n"
FIRST: dict[str, bytes] = {
    "silent": b"",
    "slow-head": HEAD,
    "slow-body": HEAD + b'\r\n{"username": "',
    "never-reading": b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
}
DRIP = {"slow-head": b"x", "slow-body": b"x"}
BETWEEN = 2.0
"""Seconds between two bytes of a connection that is slow."""
PACE = 2_000
"""Connections that are opened in a second: more than the service makes of them would wait with the system."""


def opened(port: int, kind: str) -> socket.socket:
    connection = socket.socket()
    if kind == "never-reading":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    with suppress(BlockingIOError):
        connection.send(FIRST[kind])
    return connection


def main(port: int, counts: dict[str, int]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    begun = time.monotonic()
    held: list[tuple[str, socket.socket]] = []
    for turn in range(max(counts.values())):
        held += [(kind, opened(port, kind)) for kind, count in counts.items() if turn < count]
        time.sleep(max(0.0, len(held) / PACE - (time.monotonic() - begun)))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    dripping = {connection: DRIP[kind] for kind, connection in held if kind in DRIP}
    while not select.select([sys.stdin], [], [], 0)[0]:
        begun = time.monotonic()
        each(dripping, lambda connection: connection.send(dripping[connection]))
        time.sleep(max(0.0, BETWEEN - (time.monotonic() - begun)))


def each(connections: dict[socket.socket, bytes], do: Callable[[socket.socket], object]) -> None:
    """Do something with each connection, and forget those that are closed."""
    for connection in list(connections):
        try:
            do(connection)
        except BlockingIOError:
            pass
        except OSError:
            del connections[connection]


if __name__ == "__main__":
    names = sys.argv[2::2]
    main(int(sys.argv[1]), dict(zip(names, map(int, sys.argv[3::2]), strict=True)))
