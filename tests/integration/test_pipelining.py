"""Pipelined requests to a worker of ``mlapi serve``, and large request heads."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from mlapi.entrypoints.server.connections import MAX_HEAD_BYTES, READ_BYTES, Connection, Deadlines, Phase
from mlapi.entrypoints.wire.errors import MAX_HEADERS
from tests.integration.test_connections import ServerThread, read_all, wait_until

GET = b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
SIZED = b"POST /%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n\r\n\r\nab"
CHUNKED = b"POST /%d HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n\r\n\r\nab\r\n0\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNKED_HEAD = b"POST /chunked HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


class EchoingApp:
    """Answers each request with its path and body, as soon as the test permits."""

    def __init__(self, response_bytes: int = 0) -> None:
        self.started: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._filler = b" " * response_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        self.started.append(scope["path"])
        if scope["path"] == "/slow":
            await asyncio.sleep(0.2)
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        if not self.may_answer.is_set():
            await asyncio.to_thread(self.may_answer.wait)
        content = b"<%s %s>%s" % (scope["path"].encode(), body.replace(b"\r\n", b"|"), self._filler)
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(content))]}
        )
        await send({"type": "http.response.body", "body": content})


@pytest.fixture
def app() -> EchoingApp:
    return EchoingApp()


@pytest.fixture
def server(app: ASGIApp) -> Iterator[ServerThread]:
    with ServerThread(app, deadlines=Deadlines()) as running:
        yield running


def echoes(received: bytes) -> list[bytes]:
    return [part.partition(b">")[0] for part in received.split(b"\r\n\r\n<")[1:]]


def only_connection(server: ServerThread) -> Connection:
    wait_until(lambda: len(server.server.server_state.connections) == 1)
    (connection,) = server.server.server_state.connections
    assert isinstance(connection, Connection)
    return connection


def send_in_pieces(connection: socket.socket, data: bytes, piece_bytes: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(data), piece_bytes):
        connection.sendall(data[start : start + piece_bytes])


# --- order and number


@pytest.mark.parametrize("piece_bytes", [1, 3, 1_000_000])
def test_pipelined_requests_are_answered_in_order(server: ServerThread, piece_bytes: int) -> None:
    kinds = [(GET, b""), (SIZED, b"||ab"), (CHUNKED, b"||ab")]
    expected, data = [], b""
    for number in range(30):
        request, body = kinds[number % 3]
        data += request % number
        expected.append(b"/%d %s" % (number, body))

    connection = server.connect()
    send_in_pieces(connection, data + LAST, piece_bytes)

    assert echoes(read_all(connection)) == [*expected, b"/last "]


def test_next_request_is_not_parsed_before_the_response(server: ServerThread, app: EchoingApp) -> None:
    app.may_answer.clear()
    connection = server.connect(b"".join(GET % number for number in range(2_000)) + LAST)
    held = only_connection(server)
    wait_until(lambda: bool(app.started))
    time.sleep(0.2)

    assert app.started == ["/0"]
    assert not held.pipeline
    assert 0 < len(held._unparsed) <= READ_BYTES
    app.may_answer.set()
    assert len(echoes(read_all(connection))) == 2_001


def test_pipelined_requests_do_not_delay_other_clients(server: ServerThread) -> None:
    flooding = [server.connect() for _ in range(40)]
    for connection in flooding:
        connection.setblocking(False)
        connection.send(b"".join(GET % number for number in range(300)))
    started_at = time.monotonic()

    response = read_all(server.connect(LAST))

    assert echoes(response) == [b"/last "]
    assert time.monotonic() - started_at < 2
    for connection in flooding:
        connection.close()


def test_body_with_many_empty_lines_is_read_in_turns(server: ServerThread) -> None:
    chunk = b"4\r\n\r\n\r\n\r\n"

    response = read_all(server.connect(CHUNKED_HEAD + chunk * 500 + b"0\r\n\r\n" + LAST))

    assert echoes(response) == [b"/chunked " + b"||" * 500, b"/last "]


@pytest.mark.parametrize("path", [b"/large", b"/slow"])
def test_large_bodies_may_be_pipelined(server: ServerThread, path: bytes) -> None:
    body = b"x" * 66_000  # uvicorn stops reading at 64 KiB, and continues when the application has read them
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path, len(body))

    response = read_all(server.connect((head + body + GET * 500 % tuple(range(500))) * 2 + LAST))

    gets = [b"/%d " % number for number in range(500)]
    assert echoes(response) == [*[path + b" " + body, *gets] * 2, b"/last "]


def test_client_may_disconnect_while_its_requests_wait(server: ServerThread, app: EchoingApp) -> None:
    app.may_answer.clear()
    connection = server.connect(GET % 1 + GET % 2)
    wait_until(lambda: bool(app.started))
    wait_until(lambda: bool(only_connection(server)._unparsed))

    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    app.may_answer.set()

    wait_until(lambda: not server.server.server_state.connections)


def test_malformed_pipelined_request_is_rejected_in_turn(server: ServerThread) -> None:
    received = read_all(server.connect(GET % 1 + b"GET\n" + GET % 2))

    assert echoes(received) == [b"/1 "]
    assert b"HTTP/1.1 400 " in received


def test_turn_without_received_data_has_no_effect(server: ServerThread) -> None:
    connection = server.connect(GET % 1)
    held = only_connection(server)
    server.wait_for(Phase.IDLE)

    held.loop.call_soon_threadsafe(held._take_turn)
    time.sleep(0.1)

    assert held.phase is Phase.IDLE
    connection.sendall(LAST)
    assert echoes(read_all(connection)) == [b"/1 ", b"/last "]


def test_pipelined_request_may_wait_for_100_continue(server: ServerThread) -> None:
    head = b"POST /waiting HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    connection = server.connect(GET % 1 + head)
    received = b""
    while b"100 Continue\r\n\r\n" not in received:
        received += connection.recv(1 << 16)

    connection.sendall(b"body" + LAST)

    assert echoes(read_all(connection)) == [b"/waiting body", b"/last "]


# --- clients that do not read


def test_no_more_requests_are_served_until_responses_are_read() -> None:
    app = EchoingApp(1_000_000)
    with ServerThread(app, deadlines=Deadlines(response_seconds=2.5)) as server:
        connection = server.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"".join(GET % number for number in range(100)))
        held = only_connection(server)
        wait_until(lambda: held.phase is Phase.RESPONSE and held.flow.write_paused)
        served = len(app.started)
        assert held.transport.get_write_buffer_size() < 1_100_000

        wait_until(lambda: not server.server.server_state.connections)

        assert len(app.started) == served < 20
        connection.close()


def test_serving_continues_when_responses_are_read() -> None:
    app = EchoingApp(1_000_000)
    with ServerThread(app, deadlines=Deadlines()) as server:
        connection = server.connect(b"".join(GET % number for number in range(20)) + LAST)
        held = only_connection(server)
        wait_until(lambda: held.flow.write_paused)

        assert len(echoes(read_all(connection))) == 21


# --- draining


@pytest.mark.parametrize("drain_now", [False, True])
def test_received_requests_are_served_while_draining(server: ServerThread, app: EchoingApp, drain_now: bool) -> None:
    app.may_answer.clear()
    connection = server.connect(b"".join(GET % number for number in range(5)))
    wait_until(lambda: bool(app.started))
    wait_until(lambda: bool(only_connection(server)._unparsed))

    server.server.server_state.drain_now = drain_now
    server.drain()
    server.wait_for_draining()
    app.may_answer.set()

    received = read_all(connection)
    assert echoes(received) == [b"/%d " % number for number in range(5)]
    assert received.count(b"connection: close") == 1
    assert b"connection: close" in received.rpartition(b"HTTP/1.1")[2]


def test_incomplete_next_request_is_dropped_when_draining_now(server: ServerThread, app: EchoingApp) -> None:
    app.may_answer.clear()
    connection = server.connect(GET % 1 + GET[:20])
    wait_until(lambda: bool(app.started))
    wait_until(lambda: bool(only_connection(server)._unparsed))

    server.server.server_state.drain_now = True
    server.drain()
    server.wait_for_draining()
    app.may_answer.set()

    assert echoes(read_all(connection)) == [b"/1 "]


# --- large heads and chunked bodies


def headers(count: int) -> bytes:
    return b"GET /headers HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * (count - 2) + b"Connection: close\r\n"


def test_request_may_have_a_hundred_headers(server: ServerThread) -> None:
    assert echoes(read_all(server.connect(headers(MAX_HEADERS) + b"\r\n"))) == [b"/headers "]


TOO_LARGE: list[tuple[bytes, bytes]] = [
    (headers(MAX_HEADERS + 1) + b"\r\n", b"431"),
    (headers(4_000), b"431"),
    (b"\r\n" * MAX_HEAD_BYTES, b"431"),
    (GET[:-4] + b"\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", b"431"),
    (CHUNKED_HEAD + b"0\r\nX: " + b"x" * MAX_HEAD_BYTES, b"413"),
    (CHUNKED_HEAD + b"0\r\n" + b"a:\r\n" * 1_000, b"431"),
    (CHUNKED_HEAD + b"1\r\na\r\n" * 20_000, b"413"),
]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    TOO_LARGE,
    ids=["headers", "incomplete", "empty lines", "long header", "long trailer", "trailers", "small chunks"],
)
def test_oversized_head_or_chunked_body_is_rejected(
    server: ServerThread, app: EchoingApp, request_bytes: bytes, status: bytes
) -> None:
    connection = server.connect()
    received = b""
    try:
        send_in_pieces(connection, request_bytes, READ_BYTES)
        received = read_all(connection)
    except OSError:  # the server closed the connection before it had read everything
        wait_until(lambda: not server.server.server_state.connections)

    assert received == b"" or received.startswith(b"HTTP/1.1 %s " % status)
    assert app.started in ([], ["/chunked"])


def test_sizes_of_two_heads_in_one_piece_are_not_added(server: ServerThread) -> None:
    long_head = GET[:-4] % 1 + b"\r\nX: " + b"x" * (MAX_HEAD_BYTES - 1_000) + b"\r\n\r\n"

    assert len(echoes(read_all(server.connect(long_head * 3 + LAST)))) == 4


# --- connections per address


def test_one_address_cannot_take_all_connections(app: EchoingApp, caplog: pytest.LogCaptureFixture) -> None:
    with ServerThread(app, connections=10, connections_per_address=3) as server:
        held = [server.connect() for _ in range(3)]
        server.wait_for(*[Phase.HEAD] * 3)
        rejected = read_all(server.connect(LAST))
        with socket.create_connection(server.address, timeout=10, source_address=("127.0.0.2", 0)) as other:
            other.sendall(LAST)
            accepted = read_all(other)
        held.pop().close()
        server.wait_for(*[Phase.HEAD] * 2)
        accepted_later = read_all(server.connect(LAST))
        for connection in held:
            connection.close()

    assert rejected.startswith(b"HTTP/1.1 503 ")
    assert b"--connections-per-address" in rejected
    assert (echoes(accepted), echoes(accepted_later)) == ([b"/last "], [b"/last "])
    assert [record.args for record in caplog.records if record.name == "mlapi"] == [("127.0.0.1", 3)]
