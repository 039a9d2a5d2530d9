"""Flood a server with pipelined requests: ``python -m tests.torture.pipelining_clients PORT KIND CONNECTIONS REPEAT``.

Runs in a separate process. Each connection sends the requests of its kind again and again, as fast as the server takes
them, and reads no response. The process prints ``open`` once all connections are open, and sends until its standard
input closes.
"""

import hashlib
import resource
import selectors
import socket
import sys
from contextlib import suppress
from importlib.resources import files

BUNDLE = files("mlapi.entrypoints").joinpath("static/swagger-ui/swagger-ui-bundle.js").read_bytes()
BUNDLE_PATH = f"/docs/{hashlib.sha256(BUNDLE).hexdigest()[:32]}/swagger-ui-bundle.js"
HOST = b"Host: localhost\r\n"
BODY = b'{"username": "ada", "password": "wrong"}'
JSON_HEADERS = HOST + b"Content-Type: application/json\r\n"
REQUESTS: dict[str, bytes] = {
    "small": b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n",
    "unread": b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n",
    "large-unread": f"GET {BUNDLE_PATH} HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "large-body": b"POST /token HTTP/1.1\r\n" + JSON_HEADERS + b"Content-Length: 16000\r\n\r\n" + b"[" * 16_000,
    "long-header": b"GET /health/live HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 60_000 + b"\r\n\r\n",
    "many-headers": b"GET /health/live HTTP/1.1\r\n" + HOST + b"a:\r\n" * 15_000 + b"\r\n",
    "small-chunks": (
        b"POST /token HTTP/1.1\r\n" + JSON_HEADERS + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"4\r\n\r\n\r\n\r\n" * 1_000 + b"0\r\n\r\n"
    ),
    "long-trailer": (
        b"POST /token HTTP/1.1\r\n" + JSON_HEADERS + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 1_000_000
    ),
}  # fmt: skip
SEND_BYTES = 65_536


class Sender:
    """Sends the same bytes a number of times."""

    def __init__(self, data: bytes, repeat: int) -> None:
        copies = max(1, min(repeat, SEND_BYTES // len(data)))
        self._data = memoryview(data * copies)
        self._bytes_left = len(data) * repeat
        self._offset = 0

    def send(self, connection: socket.socket) -> bool:
        """Send some bytes; return whether there are more."""
        piece = self._data[self._offset :][: self._bytes_left]
        sent = connection.send(piece)
        self._bytes_left -= sent
        self._offset = (self._offset + sent) % len(self._data)
        return self._bytes_left > 0


def main(port: int, kind: str, count: int, repeat: int) -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    for _ in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # Otherwise, the clients alone would use up the kernel's memory for TCP, and delay all others on this machine.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        connection.connect(("127.0.0.1", port))
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_WRITE, Sender(REQUESTS[kind], repeat))
    sys.stdout.write("open\n")
    sys.stdout.flush()
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            assert isinstance(key.fileobj, socket.socket)
            has_more = False
            with suppress(OSError):
                has_more = key.data.send(key.fileobj)
            if not has_more:
                selector.unregister(key.fileobj)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
