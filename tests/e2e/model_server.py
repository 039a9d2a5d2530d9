"""A model server without mlapi, to test proxies that guard it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

TIMEOUT_SECONDS = 30
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 4.2.2


@dataclass
class ModelServer:
    """A running model server, and its observed requests."""

    port: int = 0
    request_lines: list[str] = field(default_factory=list)
    """The method and the path of each request."""
    upload_started: Event = field(default_factory=Event)
    """Set when the first bytes of an upload have arrived."""
    first_event_received: Event = field(default_factory=Event)
    """Set by the test. The server waits for it before it sends the second event of a stream."""


@contextmanager
def running_model_server() -> Iterator[ModelServer]:
    """Run a model server in threads of this process."""
    model = ModelServer()
    server = _SilentServer(("127.0.0.1", 0), partial(_Handler, model))
    model.port = server.server_port
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield model
    finally:
        model.first_event_received.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _SilentServer(ThreadingHTTPServer):
    def handle_error(self, *_args: object) -> None:
        """Ignore connections that a proxy has reset."""


class _Handler(BaseHTTPRequestHandler):
    """Responds with a description of the request, or as the path specifies."""

    protocol_version = "HTTP/1.1"

    def __init__(self, model: ModelServer, *args: Any) -> None:
        self.model = model
        super().__init__(*args)

    def do_GET(self) -> None:
        self.model.request_lines.append(f"{self.command} {self.path}")
        if self.headers["Upgrade"]:
            self._accept_websocket()
        elif self.path == "/events":
            self._send_events()
        elif self.path.startswith("/status/"):
            self._send(int(self.path.rpartition("/")[2]), b'{"message":"from the model"}')
        else:
            length = self._read_body()
            request = {
                "method": self.command,
                "path": self.path,
                "headers": [(name.lower(), value) for name, value in self.headers.items()],
                "body_bytes": length,
            }
            self._send(200, json.dumps(request).encode())

    do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET  # noqa: N815 - names of http.server

    def log_message(self, *_args: object) -> None:
        """Log nothing."""

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_body(self) -> int:
        if self.headers["Transfer-Encoding"] == "chunked":
            return sum(iter(self._read_chunk, 0))
        return self._read(int(self.headers.get("Content-Length", 0)))

    def _read_chunk(self) -> int:
        length = int(self.rfile.readline(), 16)
        self._read(length)
        self.rfile.readline()
        return length

    def _read(self, length: int) -> int:
        remaining = length
        while remaining and (data := self.rfile.read1(min(remaining, 1 << 20))):
            remaining -= len(data)
            self.model.upload_started.set()
        return length - remaining

    def _send_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        assert self.model.first_event_received.wait(TIMEOUT_SECONDS)
        self.wfile.write(b"data: second\n\n")
        self.close_connection = True

    def _accept_websocket(self) -> None:
        digest = hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + _WEBSOCKET_GUID).digest()
        self.send_response(101)
        self.send_header("Upgrade", self.headers["Upgrade"])
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        self.wfile.write(self.rfile.read1(1024).upper())
        self.close_connection = True
