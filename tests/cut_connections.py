"""A TCP proxy that can cut its connections, as firewalls, failovers and restarted poolers do."""

import socket
import struct
import threading
from contextlib import suppress
from typing import Self

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with a timeout of 0


class CuttingProxy:
    """Forwards connections to a port on this machine until they are cut. New connections always work.

    Args:
        port: the port of the server.

    Attributes:
        received: everything that clients have sent.
        connection_count: the number of connections so far.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received = bytearray()
        self.connection_count = 0
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._connections: list[tuple[socket.socket, socket.socket]] = []
        self._silenced: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(10)

    def reset(self) -> None:
        """Reset all connections: the next use gets an error."""
        with self._lock:
            for pair in self._connections:
                for connection in pair:
                    with suppress(OSError):
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                        connection.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
            self._connections.clear()

    def silence(self) -> None:
        """Drop everything that is sent through the existing connections, without closing them."""
        with self._lock:
            self._silenced.update(connection for pair in self._connections for connection in pair)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                with self._lock:
                    self._connections.append((client, server))
                    self._clients.add(client)
                    self.connection_count += 1
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._forward, args=ends))
                    self._threads[-1].start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source in self._clients:
                    self.received += data
                if source not in self._silenced:
                    target.sendall(data)
        for connection in (source, target):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
            connection.close()
