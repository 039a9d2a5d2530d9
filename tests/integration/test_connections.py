"""A worker of ``mlapi serve``: deadlines and bounds of its connections, and how it drains."""

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.server import worker
from mlapi.entrypoints.server.connections import HEAD_SIZE, SURPLUS, Connection, Deadlines, Phase
from mlapi.entrypoints.server.worker import Arguments, Server, config, connections_within_limits

SHORT = Deadlines(head=1.0, body=2.5, answer=1.0, closing=1.0)
PATIENT = Deadlines()
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /register-user HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
)


class Running:
    """A server in a thread of its own."""

    def __init__(
        self, app: ASGIApp, connections: int = 100, supervised: int | None = None, deadlines: Deadlines = SHORT
    ) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = self._listening.getsockname()
        self.news: list[bytes] = []
        self.server = Server(
            config(app), connections=connections, deadlines=deadlines, alive=self.news.append, supervised=supervised
        )
        self._thread = threading.Thread(target=self.server.run, args=([self._listening],))

    def __enter__(self) -> Self:
        self._thread.start()
        within(10, lambda: bool(self.news))
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.server_state.is_hurried = True
        self.drain()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def drain(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def wait_for(self, *phases: Phase) -> None:
        """Wait until it has exactly these connections: what was sent is there, but may not have been read yet."""
        within(5, lambda: self._phases == sorted(phase.name for phase in phases))

    def wait_for_draining(self) -> None:
        within(5, lambda: self.news[-1] == b"-")

    @property
    def _phases(self) -> list[str]:
        connections = [one for one in list(self.server.server_state.connections) if isinstance(one, Connection)]
        return sorted(one.phase.name for one in connections if getattr(one, "transport", None))  # it comes a line later

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def connect(self, first: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=10)
        connection.sendall(first)
        return connection


def within(seconds: float, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def app() -> ASGIApp:
    return create_app(Users(InMemoryUserRepository(), PlainCipher()))


@pytest.fixture
def running(app: ASGIApp) -> Iterator[Running]:
    with Running(app) as running:
        yield running


@pytest.fixture
def patient(app: ASGIApp) -> Iterator[Running]:
    with Running(app, deadlines=PATIENT) as running:
        yield running


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    received = b""
    with connection:
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def one_answer(connection: socket.socket) -> bytes:
    received = b""
    while b'"message"' not in received:
        chunk = connection.recv(1 << 16)
        assert chunk, received
        received += chunk
    return received


# --- deadlines


@pytest.mark.parametrize(
    ("sent", "least", "most", "answer"),
    [
        (b"", 0.5, 1.0, b""),
        (b"GET /health/live HT", 0.5, 1.0, b"HTTP/1.1 408 Request Timeout\r\n"),
        (LIVE[:-2], 0.5, 1.0, b"HTTP/1.1 408 Request Timeout\r\n"),
        (POST + b'{"user', 1.0, 1.5, b"HTTP/1.1 408 Request Timeout\r\n"),
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_what_does_not_arrive_in_time_is_not_waited_for(
    running: Running, sent: bytes, least: float, most: float, answer: bytes
) -> None:
    begun = time.monotonic()

    received = all_of(running.connect(sent))

    assert least - 0.1 < time.monotonic() - begun < most + 1
    assert received.partition(b"date")[0].partition(b"content")[0] == answer
    if answer:
        head, _, body = received.partition(b"\r\n\r\n")
        assert json.loads(body) == {"message": "Request Timeout"}
        assert b"x-content-type-options: nosniff" in head


def test_neither_is_the_second_half_of_a_second_request(running: Running) -> None:
    connection = running.connect(LIVE)
    one_answer(connection)
    connection.sendall(LIVE[:20])

    assert all_of(connection).startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def hasty(scope: Scope, receive: Receive, send: Send) -> None:
    """Begins its answer before it has read the request."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
    while (message := await receive())["type"] not in {"http.disconnect", "lifespan.shutdown"}:
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    if scope["type"] == "lifespan":
        await send({"type": "lifespan.shutdown.complete"})


def test_an_answer_that_has_begun_is_not_followed_by_another() -> None:
    with Running(hasty) as running:
        received = all_of(running.connect(POST + b"half"))

    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"408" not in received


@pytest.mark.parametrize("begun_with", [b"G", POST], ids=["head", "body"])
def test_a_byte_from_time_to_time_gains_no_time(running: Running, begun_with: bytes) -> None:
    connection = running.connect(begun_with)
    begun = time.monotonic()

    try:
        while time.monotonic() - begun < 10:
            connection.sendall(b"E")
            time.sleep(0.1)
    except OSError:
        pass

    assert time.monotonic() - begun < 3
    connection.close()


def test_a_connection_is_kept_five_seconds_without_a_request(running: Running) -> None:
    connection = running.connect(LIVE)
    one_answer(connection)
    begun = time.monotonic()

    assert all_of(connection) == b""
    assert 4.5 < time.monotonic() - begun < 7


class Large:
    """Answers with more than the system keeps for a client who does not read: in many pieces, or in one."""

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
    ("pieces", "more", "most"),
    [(1_000, b"", 1.5), (1, b"", 2), (1, b"Connection: close\r\n", 1.5)],
    ids=["more is to come", "the next request is waited for", "it would close"],
)
def test_who_does_not_read_his_answer_is_cut_off(pieces: int, more: bytes, most: float) -> None:
    with Running(Large(pieces)) as running:
        running.server.config.timeout_keep_alive = 1
        connection = running.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % more)
        begun = time.monotonic()
        while not running.server.server_state.total_requests and pieces == 1:
            time.sleep(0.01)

        while running.server.server_state.connections and time.monotonic() - begun < 15:
            time.sleep(0.05)

        assert time.monotonic() - begun < most + 1
        assert len(all_of(connection)) < 60_000_000


# --- bounds


def test_one_connection_too_many_is_told_to_come_again(app: ASGIApp) -> None:
    with Running(app, connections=2, deadlines=PATIENT) as running:
        held = [running.connect(), running.connect()]
        running.wait_for(Phase.HEAD, Phase.HEAD)

        refused = all_of(running.connect(LIVE))
        held.pop().close()
        running.wait_for(Phase.HEAD)
        last = running.connect(LIVE)
        taken = one_answer(last)
        last.close()

        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 5\r\n" in refused
        assert taken.startswith(b"HTTP/1.1 200 ")
        held.pop().close()


def test_far_too_many_are_not_even_told(app: ASGIApp) -> None:
    with Running(app, connections=1, deadlines=PATIENT) as running:
        held = [running.connect() for _ in range(1 + SURPLUS)]
        running.wait_for(*[Phase.HEAD] * len(held))

        assert all_of(running.connect()) == b""
        for connection in held:
            connection.close()


def test_a_head_of_any_size_is_not_taken(running: Running) -> None:
    connection = running.connect(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n")

    sent = 0
    try:
        while sent < 10 * HEAD_SIZE:
            connection.sendall(b"X-Filler: %s\r\n" % (b"x" * 1000))
            sent += 1000
            time.sleep(0.001)
    except OSError:  # reset or broken pipe: what was sent is not read
        pass

    assert sent < 2 * HEAD_SIZE
    connection.close()


def test_a_head_that_is_too_large_is_answered(patient: Running) -> None:
    connection = patient.connect(b"GET /health/live HTTP/1.1\r\nX-Filler: " + b"x" * (HEAD_SIZE - 1_000))
    time.sleep(0.1)

    connection.sendall(b"x" * 2_000)

    assert all_of(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_many_requests_on_one_connection_are_no_large_head(patient: Running) -> None:
    connection = patient.connect()
    answers = []

    for _ in range(3):
        connection.sendall(
            b"GET /health/live HTTP/1.1\r\nX-Filler: %s\r\n" % bytes(HEAD_SIZE // 2).hex().encode()[:40_000]
        )
        time.sleep(0.05)
        connection.sendall(b"Host: localhost\r\n\r\n")
        answers.append(one_answer(connection)[:15])

    assert answers == [b"HTTP/1.1 200 OK"] * 3
    connection.close()


# --- draining


def test_what_comes_on_an_open_connection_while_it_drains_is_answered_and_the_last(patient: Running) -> None:
    used, fresh = patient.connect(LIVE), patient.connect()
    one_answer(used)
    patient.wait_for(Phase.IDLE, Phase.HEAD)
    patient.drain()
    patient.wait_for_draining()

    used.sendall(LIVE)
    fresh.sendall(LIVE)
    answers = all_of(used), all_of(fresh)

    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in answer
    with pytest.raises(ConnectionRefusedError):
        patient.connect()


def test_the_supervisor_is_told_of_it_and_no_longer_that_it_serves(patient: Running) -> None:
    connection = patient.connect(LIVE)
    one_answer(connection)

    patient.drain()
    patient.wait_for_draining()

    time.sleep(1.2)
    assert patient.is_running
    assert patient.news[-1] == b"-"
    assert set(patient.news[:-1]) == {b"."}
    connection.close()


def test_a_request_that_has_begun_is_answered_while_it_drains(patient: Running) -> None:
    body = b'{"username": "ada", "password": "difference engine", "email": "ada@example.com"}'
    connection = patient.connect(POST.replace(b"100", b"%d" % len(body)) + body[:10])
    patient.wait_for(Phase.BODY)
    patient.drain()
    patient.wait_for_draining()

    connection.sendall(body[10:])

    answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b"\r\nconnection: close\r\n" in answer


def test_a_worker_whose_supervisor_is_gone_waits_for_nothing_but_requests_under_way(app: ASGIApp) -> None:
    supervised, supervision = os.pipe()
    with Running(app, supervised=supervised, deadlines=Deadlines(body=2.5)) as running:
        idle, silent, busy = running.connect(LIVE), running.connect(), running.connect(POST + b'{"user')
        one_answer(idle)
        running.wait_for(Phase.IDLE, Phase.HEAD, Phase.BODY)
        begun = time.monotonic()

        os.close(supervision)

        assert (all_of(idle), all_of(silent)) == (b"", b"")
        assert time.monotonic() - begun < 0.9
        assert all_of(busy).startswith(b"HTTP/1.1 408 ")
    os.close(supervised)


def test_ctrl_c_is_left_to_the_supervisor(running: Running) -> None:
    running.server.handle_exit(signal.SIGINT, None)
    time.sleep(0.3)

    with running.connect(LIVE) as connection:
        assert one_answer(connection).startswith(b"HTTP/1.1 200 ")


# --- the process


@pytest.mark.usefixtures("restore_process_state")
def test_a_worker_says_that_it_lives_and_ends_with_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listening = socket.create_server(("127.0.0.1", 0))
    supervised, supervision = os.pipe()
    news, alive = os.pipe()
    heard: list[bytes] = []

    def supervise() -> None:
        with socket.create_connection(listening.getsockname(), timeout=30) as connection:
            connection.sendall(LIVE)
            heard.append(one_answer(connection))
        heard.append(os.read(news, 1))
        os.close(news)  # nobody reads any more: that is no fault of the worker's
        time.sleep(1)
        os.close(supervision)

    client = threading.Thread(target=supervise)
    client.start()
    worker.main(
        Arguments(
            listening=os.dup(listening.fileno()), supervised=supervised, alive=alive, connections=10, access_log=True
        )
    )
    client.join()

    assert heard[0].startswith(b"HTTP/1.1 200 ")
    assert heard[1] == b"."
    for descriptor in (supervised, alive):
        os.close(descriptor)
    listening.close()


def test_a_worker_refuses_settings_that_cannot_be_used_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLAPI_PROFILE", "holiday")

    with pytest.raises(SystemExit) as ended:
        worker.main(Arguments(listening=0, supervised=0, alive=0, connections=1, access_log=True))

    assert ended.value.code == 3
    assert capsys.readouterr().err.startswith("mlapi: profile: ")


def test_connections_are_no_more_than_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    limits = (256, 4096)
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _which, wanted: asked.append(wanted))

    assert connections_within_limits(10_000) == 4096 - 100
    assert connections_within_limits(1_000) == 1_000
    assert asked == [(4096, 4096)] * 2

    limits = (50, 50)
    assert connections_within_limits(10_000) == 1
    limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert connections_within_limits(10_000) == 10_000


def test_where_the_system_refuses_more_it_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_which: int, _wanted: tuple[int, int]) -> None:
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)

    assert connections_within_limits(10_000) == 156
