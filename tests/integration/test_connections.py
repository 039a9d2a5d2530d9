"""A worker of ``mlapi serve``: connection deadlines, connection limits and draining."""

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

import tests.waiting
from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.server import listeners, worker
from mlapi.entrypoints.server.arguments import WorkerArguments, WorkerOptions
from mlapi.entrypoints.server.connections import (
    MAX_HEAD_BYTES,
    MAX_SURPLUS_CONNECTIONS,
    MAX_TARGET_BYTES,
    Connection,
    Deadlines,
    Phase,
)
from mlapi.entrypoints.server.messages import Order, Status
from mlapi.entrypoints.server.open_files import limit_connections
from mlapi.entrypoints.server.worker import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES, Server, config
from mlapi.testing.http import LOCAL_MODE

wait_until = partial(tests.waiting.wait_until, timeout_seconds=5)
SHORT_DEADLINES = Deadlines(head_seconds=1.0, body_seconds=2.5, response_seconds=1.0, closing_seconds=1.0)
DEFAULT_DEADLINES = Deadlines()
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /register-user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
)


class ServerThread:
    """A server that runs in a thread."""

    def __init__(
        self,
        app: ASGIApp,
        connections: int = 100,
        supervisor: socket.socket | None = None,
        deadlines: Deadlines = SHORT_DEADLINES,
        connections_per_address: int | None = None,
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self.reports: list[bytes] = []
        self.server = Server(
            config(app),
            max_connections=connections,
            connections_per_address=connections_per_address,
            deadlines=deadlines,
            report=self.reports.append,
            supervisor=supervisor,
        )
        self._thread = threading.Thread(target=self.server.run, args=([self._listener],))

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: bool(self.reports), timeout_seconds=10)
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.server_state.drain_now = True
        self.drain()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def drain(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def wait_for(self, *phases: Phase) -> None:
        """Wait until the server's connections are in exactly these phases, in any order."""
        wait_until(lambda: self._phases == sorted(phase.name for phase in phases))

    def wait_for_draining(self) -> None:
        wait_until(lambda: self.reports[-1] == b"-")

    @property
    def _phases(self) -> list[str]:
        connections = [
            connection
            for connection in list(self.server.server_state.connections)
            if isinstance(connection, Connection)
        ]
        # Uvicorn registers a connection just before it sets its transport.
        return sorted(connection.phase.name for connection in connections if getattr(connection, "transport", None))

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def connect(self, first: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=10)
        connection.sendall(first)
        return connection


@pytest.fixture(autouse=True)
def fast_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "HANDSHAKE_SECONDS", 0.1)


@pytest.fixture
def app() -> ASGIApp:
    return create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE)


@pytest.fixture
def strict_server(app: ASGIApp) -> Iterator[ServerThread]:
    """A server with short deadlines."""
    with ServerThread(app) as running:
        yield running


@pytest.fixture
def server(app: ASGIApp) -> Iterator[ServerThread]:
    """A server with the default deadlines."""
    with ServerThread(app, deadlines=DEFAULT_DEADLINES) as running:
        yield running


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    with connection:
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def read_response(connection: socket.socket) -> bytes:
    received = b""
    while b'"message"' not in received:
        chunk = connection.recv(1 << 16)
        assert chunk, received
        received += chunk
    return received


# --- deadlines


@pytest.mark.parametrize(
    ("sent", "min_seconds", "max_seconds", "expected"),
    [
        (b"", 0.5, 1.0, b""),
        (b"GET /health/live HT", 0.5, 1.0, b"HTTP/1.1 408 Request Timeout\r\n"),
        (LIVE[:-2], 0.5, 1.0, b"HTTP/1.1 408 Request Timeout\r\n"),
        (POST + b'{"user', 1.0, 1.5, b"HTTP/1.1 408 Request Timeout\r\n"),
    ],
    ids=["no data", "incomplete request line", "incomplete headers", "incomplete body"],
)
def test_incomplete_request_times_out(
    strict_server: ServerThread, sent: bytes, min_seconds: float, max_seconds: float, expected: bytes
) -> None:
    started_at = time.monotonic()

    received = read_all(strict_server.connect(sent))

    assert min_seconds - 0.1 < time.monotonic() - started_at < max_seconds + 1
    assert received.partition(b"date")[0].partition(b"content")[0] == expected
    if expected:
        head, _, body = received.partition(b"\r\n\r\n")
        assert json.loads(body) == {"message": "Request Timeout"}
        assert b"x-content-type-options: nosniff" in head


def test_incomplete_second_request_times_out(strict_server: ServerThread) -> None:
    connection = strict_server.connect(LIVE)
    read_response(connection)
    connection.sendall(LIVE[:20])

    assert read_all(connection).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def early_responder(scope: Scope, receive: Receive, send: Send) -> None:
    """Start the response before reading the request body."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    while (message := await receive())["type"] not in {"http.disconnect", "lifespan.shutdown"}:
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.shutdown.complete"})


def test_no_error_response_is_sent_after_a_started_response() -> None:
    with ServerThread(early_responder) as running:
        received = read_all(running.connect(POST + b"half"))

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"408" not in received


@pytest.mark.parametrize("first_bytes", [b"G", POST], ids=["head", "body"])
def test_sending_slowly_does_not_extend_a_deadline(strict_server: ServerThread, first_bytes: bytes) -> None:
    connection = strict_server.connect(first_bytes)
    started_at = time.monotonic()

    try:
        while time.monotonic() - started_at < 10:
            connection.sendall(b"E")
            time.sleep(0.1)
    except OSError:
        pass

    assert time.monotonic() - started_at < 3
    connection.close()


def test_idle_connection_is_closed_after_five_seconds(strict_server: ServerThread) -> None:
    connection = strict_server.connect(LIVE)
    read_response(connection)
    started_at = time.monotonic()

    assert read_all(connection) == b""
    assert 4.5 < time.monotonic() - started_at < 7


class LargeResponse:
    """An application whose response does not fit into the operating system's buffers.

    It sends the response in the given number of pieces.
    """

    def __init__(self, pieces: int) -> None:
        self._piece = bytes(60_000_000 // pieces)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        length = b"%d" % (len(self._piece) * self._pieces)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for number in range(1, self._pieces + 1):
            await send({"type": "http.response.body", "body": self._piece, "more_body": number < self._pieces})


@pytest.mark.parametrize(
    ("pieces", "headers", "max_seconds"),
    [(1_000, b"", 1.5), (1, b"", 2), (1, b"Connection: close\r\n", 1.5)],
    ids=["while sending", "while idle", "while closing"],
)
def test_client_that_does_not_read_is_disconnected(pieces: int, headers: bytes, max_seconds: float) -> None:
    with ServerThread(LargeResponse(pieces)) as running:
        running.server.config.timeout_keep_alive = 1
        connection = running.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % headers)
        started_at = time.monotonic()
        while not running.server.server_state.total_requests and pieces == 1:
            time.sleep(0.01)

        while running.server.server_state.connections and time.monotonic() - started_at < 15:
            time.sleep(0.05)

        assert time.monotonic() - started_at < max_seconds + 1
        assert len(read_all(connection)) < 60_000_000


# --- limits


def test_connection_above_the_maximum_gets_503(app: ASGIApp) -> None:
    with ServerThread(app, connections=2, deadlines=DEFAULT_DEADLINES) as running:
        held = [running.connect(), running.connect()]
        running.wait_for(Phase.HEAD, Phase.HEAD)

        rejected = read_all(running.connect(LIVE))
        held.pop().close()
        running.wait_for(Phase.HEAD)
        last = running.connect(LIVE)
        accepted = read_response(last)
        last.close()

        assert rejected.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 5\r\n" in rejected
        assert accepted.startswith(b"HTTP/1.1 200 ")
        held.pop().close()


def test_connection_far_above_the_maximum_is_closed(app: ASGIApp) -> None:
    with ServerThread(app, connections=1, deadlines=DEFAULT_DEADLINES) as running:
        held = [running.connect() for _ in range(1 + MAX_SURPLUS_CONNECTIONS)]
        running.wait_for(*[Phase.HEAD] * len(held))

        assert read_all(running.connect()) == b""
        for connection in held:
            connection.close()


def test_endless_request_headers_are_cut_off(strict_server: ServerThread) -> None:
    connection = strict_server.connect(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n")

    sent = 0
    try:
        while sent < 10 * MAX_HEAD_BYTES:
            connection.sendall(b"X-Filler: %s\r\n" % (b"x" * 1000))
            sent += 1000
            time.sleep(0.001)
    except OSError:  # the server has already closed the connection
        pass

    assert sent < 2 * MAX_HEAD_BYTES
    connection.close()


def test_oversized_request_headers_get_431(server: ServerThread) -> None:
    connection = server.connect(b"GET /health/live HTTP/1.1\r\nX-Filler: " + b"x" * (MAX_HEAD_BYTES - 1_000))
    time.sleep(0.1)

    connection.sendall(b"x" * 2_000)

    assert read_all(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


@pytest.mark.parametrize("separator", [b"/", b"/?"])
def test_long_path_or_query_gets_414(server: ServerThread, separator: bytes) -> None:
    connection = server.connect(b"GET " + separator + b"%41" * (MAX_TARGET_BYTES // 3) + b" HTTP/1.1\r\n\r\n")

    assert read_all(connection).startswith(b"HTTP/1.1 414 ")


def test_kernel_buffers_of_a_connection_are_bounded(server: ServerThread) -> None:
    client = server.connect(LIVE)
    read_response(client)

    (held,) = server.server.server_state.connections
    assert isinstance(held, Connection)
    connection = held.transport.get_extra_info("socket")

    for option, size_bytes in ((socket.SO_SNDBUF, SEND_BUFFER_BYTES), (socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)):
        assert connection.getsockopt(socket.SOL_SOCKET, option) <= 2 * size_bytes
    client.close()


def test_header_limit_applies_to_each_request(server: ServerThread) -> None:
    connection = server.connect()
    responses = []

    for _ in range(3):
        connection.sendall(b"GET /health/live HTTP/1.1\r\n" + b"X-Filler: %s\r\n" % (b"0" * 10_000) * 4)
        time.sleep(0.05)
        connection.sendall(b"Host: localhost\r\n\r\n")
        responses.append(read_response(connection)[:15])

    assert responses == [b"HTTP/1.1 200 OK"] * 3
    connection.close()


# --- draining


def test_draining_worker_serves_one_last_request_per_connection(server: ServerThread) -> None:
    used, fresh = server.connect(LIVE), server.connect()
    read_response(used)
    server.wait_for(Phase.IDLE, Phase.HEAD)
    server.drain()
    server.wait_for_draining()

    used.sendall(LIVE)
    fresh.sendall(LIVE)
    responses = read_all(used), read_all(fresh)

    for response in responses:
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in response
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_draining_is_reported_to_the_supervisor(server: ServerThread) -> None:
    connection = server.connect(LIVE)
    read_response(connection)

    server.drain()
    server.wait_for_draining()

    time.sleep(1.2)
    assert server.is_running
    assert server.reports[-1] == b"-"
    assert set(server.reports[:-1]) == {b"."}
    connection.close()


def test_request_in_progress_is_served_while_draining(server: ServerThread) -> None:
    body = b'{"username": "ada", "password": "difference engine", "email": "ada@example.com"}'
    connection = server.connect(POST.replace(b"100", b"%d" % len(body)) + body[:10])
    server.wait_for(Phase.BODY)
    server.drain()
    server.wait_for_draining()

    connection.sendall(body[10:])

    response = read_all(connection)
    assert response.startswith(b"HTTP/1.1 201 ")
    assert b"\r\nconnection: close\r\n" in response


def test_worker_without_supervisor_closes_idle_connections(app: ASGIApp) -> None:
    supervisor, orders = socket.socketpair()
    with orders, ServerThread(app, supervisor=orders, deadlines=Deadlines(body_seconds=2.5)) as running:
        idle, silent, busy = running.connect(LIVE), running.connect(), running.connect(POST + b'{"user')
        read_response(idle)
        running.wait_for(Phase.IDLE, Phase.HEAD, Phase.BODY)
        started_at = time.monotonic()

        supervisor.close()

        assert (read_all(idle), read_all(silent)) == (b"", b"")
        assert time.monotonic() - started_at < 1.2
        assert read_all(busy).startswith(b"HTTP/1.1 408 ")


@pytest.fixture
def supervised(app: ASGIApp) -> Iterator[tuple[ServerThread, socket.socket]]:
    """A server and the supervisor's end of its socket for orders."""
    supervisor, orders = socket.socketpair()
    with supervisor, orders, ServerThread(app, supervisor=orders) as running:
        yield running, supervisor
        supervisor.close()


Supervised = tuple[ServerThread, socket.socket]


def test_waiting_connections_are_served_before_listener_closes(supervised: Supervised) -> None:
    running, supervisor = supervised
    waiting = [running.connect(LIVE) for _ in range(50)]

    supervisor.sendall(Order.STOP)

    for connection in waiting:
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
    running.wait_for_draining()
    with pytest.raises(ConnectionRefusedError):
        running.connect()


def test_waiting_connections_are_served_without_socket_filters(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "_SO_ATTACH_FILTER", 0x7FFF)  # no option has this number
    running, supervisor = supervised
    waiting = [running.connect(LIVE) for _ in range(50)]

    supervisor.sendall(Order.STOP)

    for connection in waiting:
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_started_handshakes_complete_and_new_ones_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "HANDSHAKE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        early = socket.create_connection(listener.getsockname(), timeout=10)
        assert listeners._drop_new_handshakes(listener)

        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.3)

        accepted, _ = listener.accept()
        early.sendall(b"data")
        assert accepted.recv(10) == b"data"
        accepted.close()
        early.close()


def test_worker_leaves_its_waiting_connections_to_its_successor(supervised: Supervised) -> None:
    running, supervisor = supervised
    with running._listener.dup() as listener:
        supervisor.sendall(Order.LEAVE)
        running.wait_for_draining()
        connection = running.connect(LIVE)

        accepted, _ = listener.accept()

        accepted.close()
        connection.close()


def test_idle_connections_close_if_the_supervisor_exits_later(supervised: Supervised) -> None:
    running, supervisor = supervised
    connection = running.connect(LIVE)
    read_response(connection)
    supervisor.sendall(Order.LEAVE)
    running.wait_for_draining()
    started_at = time.monotonic()

    supervisor.close()

    assert read_all(connection) == b""
    assert time.monotonic() - started_at < 3


def test_connection_from_the_supervisor_is_served(supervised: Supervised) -> None:
    _, supervisor = supervised
    with socket.create_server(("127.0.0.1", 0)) as other:
        connection = socket.create_connection(other.getsockname(), timeout=10)
        accepted, _ = other.accept()

        socket.send_fds(supervisor, [Order.SERVE_CONNECTION], [accepted.fileno()])
        accepted.close()

        connection.sendall(LIVE)
        assert read_response(connection).startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_supervised_worker_asks_for_a_replacement_on_sigterm(supervised: Supervised) -> None:
    running, _ = supervised

    running.server.handle_exit(signal.SIGTERM, None)

    assert Status.REPLACE_ME in running.reports
    with running.connect(LIVE) as connection:
        assert read_response(connection).startswith(b"HTTP/1.1 200 ")


def test_worker_that_is_starting_exits_on_sigterm(app: ASGIApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_process(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", exit_process)
    server = Server(config(app), max_connections=1)

    with pytest.raises(SystemExit) as exit_info:
        server.handle_exit(signal.SIGTERM, None)

    assert exit_info.value.code == 0


def test_address_taken_during_startup_is_reported(app: ASGIApp, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address = other.getsockname()
        other.close()
        listener.bind(address)
        with socket.create_server(address, reuse_port=False), pytest.raises(SystemExit) as exit_info:
            Server(config(app), max_connections=1).run([listener])

    assert exit_info.value.code == 3
    assert caplog.messages[-1] == "cannot listen: Address already in use; change --host or --port"


def test_unread_request_is_served_when_idle_connections_close(server: ServerThread) -> None:
    connection = server.connect(LIVE)
    read_response(connection)
    server.wait_for(Phase.IDLE)

    def send_and_close() -> None:
        """Run in the event loop, which therefore cannot read the request in between."""
        connection.sendall(LIVE)
        server.server.server_state.drain_now = True
        for idle in list(server.server.server_state.connections):
            idle.shutdown()

    assert server.server._check_task is not None
    server.server._check_task.get_loop().call_soon_threadsafe(send_and_close)

    assert read_response(connection).startswith(b"HTTP/1.1 200 ")
    connection.close()


def test_worker_ignores_sigint(strict_server: ServerThread) -> None:
    strict_server.server.handle_exit(signal.SIGINT, None)
    time.sleep(0.3)

    with strict_server.connect(LIVE) as connection:
        assert read_response(connection).startswith(b"HTTP/1.1 200 ")


# --- the process


@pytest.mark.usefixtures("restore_process_state")
def test_worker_reports_its_status_and_exits_with_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    supervisor, orders = socket.socketpair()
    status_pipe, status_fd = os.pipe()
    received: list[bytes] = []

    def supervise() -> None:
        with socket.create_connection(listener.getsockname(), timeout=30) as connection:
            connection.sendall(LIVE)
            received.append(read_response(connection))
        received.append(os.read(status_pipe, 1))
        os.close(status_pipe)  # the worker must ignore that the pipe is broken
        time.sleep(1)
        supervisor.close()

    client = threading.Thread(target=supervise)
    client.start()
    worker.main(
        WorkerArguments(
            listener_fds=[os.dup(listener.fileno())],
            supervisor_fd=orders.detach(),
            status_fd=status_fd,
            options=WorkerOptions(max_connections=10),
        )
    )
    client.join()

    assert received[0].startswith(b"HTTP/1.1 200 ")
    assert received[1] == b"."
    os.close(status_fd)
    listener.close()


def test_invalid_settings_are_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PROFILE", "holiday")

    options = WorkerOptions(max_connections=1)

    with pytest.raises(SystemExit) as exit_info:
        worker.main(WorkerArguments(listener_fds=[0], supervisor_fd=0, status_fd=0, options=options))

    assert exit_info.value.code == 3
    assert capsys.readouterr().err.startswith("mlapi: profile must be ")


def test_maximum_connections_respect_the_open_file_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[tuple[int, int]] = []
    limits = (256, 4096)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, wanted: requested.append(wanted))

    assert limit_connections(10_000) == 4096 - 100
    assert limit_connections(1_000) == 1_000
    assert requested == [(4096, 4096)] * 2

    limits = (50, 50)
    assert limit_connections(10_000) == 1
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert limit_connections(10_000) == 10_000


def test_failure_to_raise_the_open_file_limit_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _wanted: tuple[int, int]) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)

    assert limit_connections(10_000) == 156
