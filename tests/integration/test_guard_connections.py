"""The guard handles preflights and WebSockets of browsers, and ends open connections of disabled users."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import attrs
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlapi import Guard, RepositoryUnavailableError, User, UserDisabledError, Users
from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqliteUserRepository, SqlUserRepository
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.users import utc_now
from mlapi.entrypoints.guard import GuardMiddleware, rechecks
from mlapi.testing import assert_all_routes_guarded
from mlapi.testing.samples import registered

PAGE = "https://app.example.com"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
INTERVAL_SECONDS = 0.02
TIMEOUT_SECONDS = 20


class CountingRepository(InMemoryUserRepository):
    """Counts lookups, and can be unavailable."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups: list[list[PrincipalId]] = []
        self.error: Exception | None = None

    def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
        self.lookups.append(list(ids))
        if self.error is not None:
            raise self.error
        return super().find_principals(ids)


@pytest.fixture
def repository() -> CountingRepository:
    return CountingRepository()


@pytest.fixture
def users(repository: CountingRepository) -> Users:
    return Users(repository, PlainCipher())


@pytest.fixture
def tokens() -> InMemoryTokens:
    return InMemoryTokens()


@pytest.fixture
def guard(users: Users, tokens: InMemoryTokens) -> Guard:
    return Guard(users.repository, tokens)


@pytest.fixture
def ada(users: Users) -> User:
    return registered(users.repository)


@pytest.fixture
def disable(users: Users, ada: User) -> Callable[[], object]:
    """A function that disables ada."""
    return lambda: users.set_enabled(user_id=ada.id, enabled=False)


@pytest.fixture
def token(tokens: InMemoryTokens, ada: User) -> str:
    return tokens.issue(ada).token


# --- preflights


async def predict(_request: Request) -> JSONResponse:
    return JSONResponse("setosa")


class ServeEveryMethod:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse("the model's result")(scope, receive, send)


async def describe_caller(request: Request) -> Response:
    return Response(headers={"X-Authenticated": str(request.user.is_authenticated)})


def guarded_model(guard: Guard, *middleware: Middleware) -> TestClient:
    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/raw", ServeEveryMethod()),
        Route("/caller", describe_caller, methods=["OPTIONS"]),
    ]
    return TestClient(GuardMiddleware(Starlette(routes=routes, middleware=middleware), guard))


def test_preflight_reaches_the_cors_middleware_behind_the_guard(guard: Guard) -> None:
    http = guarded_model(guard, Middleware(CORSMiddleware, allow_origins=[PAGE], allow_methods=["POST"]))

    response = http.options("/predict", headers=PREFLIGHT)

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "POST" in response.headers["access-control-allow-methods"]


def test_application_answers_preflights_itself(guard: Guard) -> None:
    http = guarded_model(guard)

    answers = [http.options(path, headers=PREFLIGHT) for path in ("/predict", "/unknown", "/caller")]

    assert [answer.status_code for answer in answers] == [405, 404, 200]
    assert answers[2].headers["x-authenticated"] == "False"


def test_forged_preflight_gets_no_result_from_the_model(guard: Guard) -> None:
    response = guarded_model(guard).options("/raw", headers=PREFLIGHT)

    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("OPTIONS", {}),
        ("OPTIONS", {"Origin": PAGE}),
        ("OPTIONS", {"Access-Control-Request-Method": "POST"}),
        ("OPTIONS", {"Origin": "", "Access-Control-Request-Method": "POST"}),
        ("OPTIONS", {"Origin": PAGE, "Access-Control-Request-Method": ""}),
        ("OPTIONS", {"Origin": PAGE, "Access-Control-Request-Method": "POST /predict"}),
        ("OPTIONS", {**PREFLIGHT, "Content-Length": "2"}),
        ("OPTIONS", {**PREFLIGHT, "Transfer-Encoding": "chunked"}),
        ("OPTIONS", {**PREFLIGHT, "Content-Type": "application/json"}),
        ("OPTIONS", {**PREFLIGHT, "X-HTTP-Method-Override": "POST"}),
        ("OPTIONS", {**PREFLIGHT, "X-HTTP-Method": "POST"}),
        ("OPTIONS", {**PREFLIGHT, "X-Method-Override": "POST"}),
        ("OPTIONS", {**PREFLIGHT, "Authorization": "Bearer nonsense"}),
        ("OPTIONS", {**PREFLIGHT, "X-API-Key": "nonsense"}),
        ("OPTIONS", {**PREFLIGHT, "Cookie": "a=b"}),
        ("POST", PREFLIGHT),
        ("GET", PREFLIGHT),
    ],
    ids=str,
)
def test_requests_similar_to_preflights_need_a_credential(guard: Guard, method: str, headers: dict[str, str]) -> None:
    http = guarded_model(guard, Middleware(CORSMiddleware, allow_origins=["*"]))

    assert http.request(method, "/predict", headers=headers).status_code == 401


def test_repeated_preflight_headers_are_rejected(guard: Guard) -> None:
    headers = [*PREFLIGHT.items(), ("Origin", "https://evil.example")]

    assert guarded_model(guard).request("OPTIONS", "/predict", headers=headers).status_code == 401


def test_route_check_still_finds_unguarded_options_handlers(guard: Guard) -> None:
    app = Starlette(routes=[Route("/caller", describe_caller, methods=["OPTIONS"])])

    assert_all_routes_guarded(GuardMiddleware(app, guard))
    with pytest.raises(AssertionError, match="OPTIONS /caller"):
        assert_all_routes_guarded(app)


# --- WebSockets with a credential as a subprotocol


async def describe_handshake(socket: WebSocket) -> None:
    requested = socket.query_params.get("select")
    await socket.accept(subprotocol=requested)
    header = socket.headers.get("sec-websocket-protocol")
    await socket.send_json([socket.user.username, socket.scope["subprotocols"], header])
    await socket.close()


def connect(guard: Guard, subprotocols: list[str], query: str = "", **headers: str) -> tuple[Any, str | None]:
    http = TestClient(GuardMiddleware(Starlette(routes=[WebSocketRoute("/echo", describe_handshake)]), guard))
    with http.websocket_connect(f"/echo{query}", subprotocols=subprotocols, headers=headers) as socket:
        return socket.receive_json(), socket.accepted_subprotocol


def test_token_is_accepted_as_a_subprotocol(guard: Guard, token: str) -> None:
    assert connect(guard, ["bearer", token]) == (["ada", [], None], "bearer")


def test_api_key_is_accepted_as_a_subprotocol(guard: Guard, users: Users, ada: User) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="page")

    assert connect(guard, ["bearer", key]) == (["ada", [], None], "bearer")


def test_application_sees_and_selects_other_subprotocols(guard: Guard, token: str) -> None:
    seen = ["ada", ["chat.v2", "chat.v1"], "chat.v2, chat.v1"]

    assert connect(guard, ["chat.v2", "bearer", token, "chat.v1"], "?select=chat.v1") == (seen, "chat.v1")
    assert connect(guard, ["chat.v2", "Bearer", token, "chat.v1"]) == (seen, "Bearer")


def test_header_still_authenticates_a_websocket(guard: Guard, token: str) -> None:
    assert connect(guard, ["chat"], Authorization=f"Bearer {token}") == (["ada", ["chat"], "chat"], None)


def test_same_credential_in_header_and_subprotocol_is_accepted(guard: Guard, token: str) -> None:
    assert connect(guard, ["bearer", token], Authorization=f"Bearer {token}")[1] == "bearer"


@pytest.mark.parametrize("header", [{"X-API-Key": "of-a-gateway"}, {"Authorization": "Basic Z2F0ZTp3YXk="}])
def test_credential_of_a_proxy_is_ignored_beside_a_subprotocol(
    guard: Guard, token: str, header: dict[str, str]
) -> None:
    assert connect(guard, ["bearer", token], **header)[1] == "bearer"


def test_api_key_and_token_of_a_websocket_must_be_the_same(guard: Guard, users: Users, ada: User, token: str) -> None:
    _, key = users.add_api_key(user_id=ada.id, name="page")

    assert connect(guard, ["bearer", key], **{"X-API-Key": key})[1] == "bearer"
    with pytest.raises(WebSocketDisconnect):
        connect(guard, ["bearer", token], **{"X-API-Key": key})


@pytest.mark.parametrize(
    ("subprotocols", "authorization"),
    [
        (["bearer"], ""),
        (["bearer", "nonsense"], ""),
        (["{token}"], ""),
        (["{token}", "bearer"], ""),
        (["bearer", "{token}", "bearer", "{token}"], ""),
        (["bearer", "chat", "{token}"], ""),
        (["bearer"], "Bearer {token}"),
        (["bearer", "nonsense"], "Bearer {token}"),
        (["bearer", "{token}"], "Bearer nonsense"),
    ],
    ids=str,
)
def test_wrong_subprotocols_are_rejected(guard: Guard, token: str, subprotocols: list[str], authorization: str) -> None:
    headers = {"Authorization": authorization.format(token=token)} if authorization else {}

    with pytest.raises(WebSocketDisconnect) as closed:
        connect(guard, [name.format(token=token) for name in subprotocols], **headers)

    assert closed.value.code == 1008


# --- open connections of users who have lost access


@attrs.define
class Connection:
    """A connection to an ASGI application, in the role of the server."""

    type: str
    token: str
    incoming: "asyncio.Queue[Message]" = attrs.field(factory=asyncio.Queue)
    sent: list[Message] = attrs.field(factory=list)

    async def call(self, app: ASGIApp) -> None:
        scope = {
            "type": self.type,
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "GET",
            "path": "/",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {self.token}".encode())],
        }
        await app(scope, self.incoming.get, self.send)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def body(self) -> list[tuple[bytes, bool]]:
        return [(message["body"], message.get("more_body", False)) for message in self.sent[1:]]


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 - the conditions concern lists
            await asyncio.sleep(0.001)


async def stream_until_disconnect(scope: Scope, receive: Receive, send: Send) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    await StreamingResponse(chunks())(scope, receive, send)


async def stream_forever(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await asyncio.sleep(0.001)


async def stream_in_a_task_group(scope: Scope, receive: Receive, send: Send) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(stream_forever(scope, receive, send))


async def hang_after_first_chunk(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await asyncio.Event().wait()


async def hang_after_head(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.Event().wait()


def end_stream(
    app: ASGIApp,
    guard: Guard,
    token: str,
    lose_access: Callable[[], object],
    *,
    is_started: Callable[[Connection], bool],
) -> Connection:
    """Call an application, take the user's access away once the response has started, and wait until the call ends."""

    async def run() -> Connection:
        connection = Connection("http", token)
        guarded = GuardMiddleware(app, guard, recheck_seconds=INTERVAL_SECONDS)
        running = asyncio.create_task(connection.call(guarded))
        await wait_until(lambda: is_started(connection))
        lose_access()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await running
        return connection

    return asyncio.run(run())


@pytest.mark.parametrize(
    "app",
    [stream_until_disconnect, stream_forever, stream_in_a_task_group, hang_after_first_chunk, hang_after_head],
)
def test_stream_of_a_disabled_user_is_cut(
    app: ASGIApp, guard: Guard, token: str, disable: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecks, "GRACE_SECONDS", 0.01)

    connection = end_stream(app, guard, token, disable, is_started=lambda opened: bool(opened.sent))

    assert all(has_more for _, has_more in connection.body)  # an incomplete body makes the server close the connection


@pytest.mark.parametrize("reason", ["removed", "password changed", "tokens ended"])
def test_stream_is_cut_whatever_ends_the_access(reason: str, guard: Guard, users: Users, ada: User, token: str) -> None:
    lose_access: dict[str, Callable[[], object]] = {
        "removed": lambda: users.remove(user_id=ada.id),
        "password changed": lambda: users.set_password(user_id=ada.id, password="another password"),
        "tokens ended": lambda: users.end_tokens(user_id=ada.id),
    }

    connection = end_stream(
        stream_until_disconnect, guard, token, lose_access[reason], is_started=lambda opened: len(opened.sent) > 1
    )

    assert connection.body == [(b"first", True)]


def test_stream_is_cut_when_its_token_expires(users: Users, ada: User) -> None:
    now = [utc_now()]
    tokens = InMemoryTokens(lifetime=timedelta(minutes=1), clock=lambda: now[0])
    guard = Guard(users.repository, tokens, clock=lambda: now[0])

    connection = end_stream(
        stream_until_disconnect,
        guard,
        tokens.issue(ada).token,
        lambda: now.insert(0, now[0] + timedelta(minutes=1)),
        is_started=lambda opened: len(opened.sent) > 1,
    )

    assert connection.body == [(b"first", True)]


def test_stream_is_cut_on_every_database(database: Database, tokens: InMemoryTokens) -> None:
    repository = (SqliteUserRepository if database.dialect.supports_nowait else SqlUserRepository)(database)
    users = Users(repository, PlainCipher())
    ada = registered(repository)

    connection = end_stream(
        stream_until_disconnect,
        Guard(repository, tokens),
        tokens.issue(ada).token,
        lambda: users.set_enabled(user_id=ada.id, enabled=False),
        is_started=lambda opened: len(opened.sent) > 1,
    )

    assert connection.body == [(b"first", True)]


def test_stream_behind_other_middleware_is_cut(guard: Guard, token: str, disable: Callable[[], object]) -> None:
    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app = BaseHTTPMiddleware(stream_until_disconnect, pass_on)

    connection = end_stream(app, guard, token, disable, is_started=lambda opened: len(opened.sent) > 1)

    assert connection.body == [(b"first", True)]


def test_outage_does_not_end_streams(
    guard: Guard,
    repository: CountingRepository,
    token: str,
    disable: Callable[[], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "mlapi")

    async def run() -> bool:
        connection = Connection("http", token)
        guarded = GuardMiddleware(stream_until_disconnect, guard, recheck_seconds=INTERVAL_SECONDS)
        running = asyncio.create_task(connection.call(guarded))
        await wait_until(lambda: len(connection.sent) > 1)
        for repository.error in (RepositoryUnavailableError("simulated outage"), ZeroDivisionError("a secret")):
            count = len(repository.lookups)
            await wait_until(lambda count=count: len(repository.lookups) > count + 2)  # type: ignore[misc]  # of the default value
        was_open = not running.done()
        repository.error = None
        disable()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await running
        return was_open

    assert asyncio.run(run())
    stays_open = "guard: open connections could not be checked again and stay open: "
    reported = [message for message in caplog.messages if message.startswith(stays_open)]
    assert reported == [
        stays_open + "the database is unavailable: simulated outage",
        stays_open + "ZeroDivisionError",
    ]
    assert not any("a secret" in message for message in caplog.messages)


def test_all_connections_share_one_lookup_per_interval(
    guard: Guard, repository: CountingRepository, tokens: InMemoryTokens, ada: User, token: str
) -> None:
    other_token = tokens.issue(ada).token

    async def run() -> list[list[PrincipalId]]:
        guarded = GuardMiddleware(stream_until_disconnect, guard, recheck_seconds=INTERVAL_SECONDS)
        connections = [Connection("http", each) for each in [token] * 20 + [other_token] * 20]
        running = [asyncio.create_task(connection.call(guarded)) for connection in connections]
        await wait_until(lambda: all(len(connection.sent) > 1 for connection in connections))
        repository.lookups.clear()
        await wait_until(lambda: len(repository.lookups) > 3)
        lookups = list(repository.lookups)
        for connection in connections:
            connection.incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.gather(*running)
        count = len(repository.lookups)
        await asyncio.sleep(INTERVAL_SECONDS * 5)
        assert len(repository.lookups) <= count + 1  # the checks stop after the last connection has closed
        assert len(asyncio.all_tasks()) == 1
        return lookups

    assert {len(ids) for ids in asyncio.run(run())} <= {1, 2}  # one query with one id for each token


def test_more_connections_than_one_query_takes_are_checked(
    guard: Guard, users: Users, tokens: InMemoryTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rechecks, "_MAX_CHECKS", 2)
    people = [registered(users.repository, f"user{number}") for number in range(5)]

    async def run() -> None:
        guarded = GuardMiddleware(stream_until_disconnect, guard, recheck_seconds=INTERVAL_SECONDS)
        connections = [Connection("http", tokens.issue(user).token) for user in people]
        running = [asyncio.create_task(connection.call(guarded)) for connection in connections]
        await wait_until(lambda: all(len(connection.sent) > 1 for connection in connections))
        for user in people:
            users.set_enabled(user_id=user.id, enabled=False)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await asyncio.gather(*running)

    asyncio.run(run())


def test_stream_that_finishes_during_its_check_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        is_checking, may_answer = asyncio.Event(), asyncio.Event()

        async def check(_credential: str) -> User:
            is_checking.set()
            await may_answer.wait()
            raise UserDisabledError(1)

        opened = rechecks.Rechecks(INTERVAL_SECONDS, check)

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            await opened.run(stream_until_disconnect, scope, receive, send, "token")

        connections = [Connection("http", "token") for _ in range(10)]
        running = [asyncio.create_task(connection.call(guarded)) for connection in connections]
        await is_checking.wait()
        for connection in connections[1:]:
            connection.incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.gather(*running[1:])
        may_answer.set()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await running[0]

    asyncio.run(run())

    gc.collect()  # asyncio logs the error of a task when the task is deleted
    assert [record.getMessage() for record in caplog.records if record.name in {"mlapi", "asyncio"}] == [
        "guard: ended an open connection: User is disabled"
    ]


def test_complete_responses_and_errors_pass_unchanged(guard: Guard, token: str) -> None:
    async def fails(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ConnectionResetError

    async def reads_and_times_out(_scope: Scope, receive: Receive, _send: Send) -> None:
        assert await receive() == {"type": "http.request"}
        async with asyncio.timeout(0.01):
            await receive()

    async def run(app: ASGIApp) -> Connection:
        connection = Connection("http", token)
        connection.incoming.put_nowait({"type": "http.request"})
        await connection.call(GuardMiddleware(app, guard, recheck_seconds=INTERVAL_SECONDS))
        return connection

    assert asyncio.run(run(JSONResponse("done"))).body == [(b'"done"', False)]
    with pytest.raises(ConnectionResetError):
        asyncio.run(run(fails))
    with pytest.raises(TimeoutError):
        asyncio.run(run(reads_and_times_out))


def test_timeout_of_the_server_is_not_mistaken_for_the_end(guard: Guard, token: str) -> None:
    async def reads(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()

    async def times_out() -> Message:
        raise TimeoutError("the server's own")

    async def run() -> None:
        connection = Connection("http", token)
        connection.incoming.get = times_out  # type: ignore[method-assign]  # in the role of the server
        await connection.call(GuardMiddleware(reads, guard, recheck_seconds=INTERVAL_SECONDS))

    with pytest.raises(TimeoutError, match="the server's own"):
        asyncio.run(run())


def test_user_stays_connected_without_recheck(guard: Guard, token: str, disable: Callable[[], object]) -> None:
    async def run() -> list[tuple[bytes, bool]]:
        connection = Connection("http", token)
        running = asyncio.create_task(connection.call(GuardMiddleware(stream_until_disconnect, guard)))
        await wait_until(lambda: len(connection.sent) > 1)
        disable()
        await asyncio.sleep(INTERVAL_SECONDS * 3)
        assert not running.done()
        connection.incoming.put_nowait({"type": "http.disconnect"})
        await running
        return connection.body

    assert asyncio.run(run()) == [(b"first", True)]


# --- open WebSockets


async def echo_forever(socket: WebSocket, events: list[object]) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect as error:
        events.append((error.code, error.reason))
        raise


async def push_forever(socket: WebSocket, events: list[object]) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text("tick")
            await asyncio.sleep(0.001)
    except WebSocketDisconnect as error:
        events.append((error.code, error.reason))


async def echo_in_a_task_group(socket: WebSocket, events: list[object]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(echo_forever(socket, events))


async def ignore_the_end(socket: WebSocket, events: list[object]) -> None:
    await socket.accept()
    events.extend([await socket._receive(), await socket._receive()])  # as in an application without Starlette
    with pytest.raises(ConnectionAbortedError, match="the guard has ended this connection: User is disabled"):
        await socket._send({"type": "websocket.send", "text": "too late"})


def run_websocket(
    endpoint: Callable[[WebSocket, list[object]], Awaitable[None]],
    guard: Guard,
    token: str,
    lose_access: Callable[[], object],
    send: Callable[[Connection, Message], Awaitable[None]] | None = None,
) -> tuple[list[object], list[Message]]:
    events: list[object] = []

    async def app(scope: Scope, receive: Receive, send_: Send) -> None:
        await endpoint(WebSocket(scope, receive, send_), events)

    async def run() -> list[Message]:
        connection = Connection("websocket", token)
        connection.incoming.put_nowait({"type": "websocket.connect"})
        running = asyncio.create_task(connection.call(GuardMiddleware(app, guard, recheck_seconds=INTERVAL_SECONDS)))
        await wait_until(lambda: bool(connection.sent))
        lose_access()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await running
        return connection.sent

    return events, asyncio.run(run())


@pytest.mark.parametrize(
    ("endpoint", "event"),
    [
        (echo_forever, (1008, "User is disabled")),
        (push_forever, (1006, "")),
        (echo_in_a_task_group, (1008, "User is disabled")),
        (ignore_the_end, {"type": "websocket.disconnect", "code": 1008, "reason": "User is disabled"}),
    ],
)
def test_websocket_of_a_disabled_user_is_closed(
    endpoint: Callable[[WebSocket, list[object]], Awaitable[None]],
    event: object,
    guard: Guard,
    token: str,
    disable: Callable[[], object],
) -> None:
    events, sent = run_websocket(endpoint, guard, token, disable)

    assert set(map(str, events)) == {str(event)}
    assert sent[-1] == {"type": "websocket.close", "code": 1008, "reason": "User is disabled"}


def test_websocket_of_an_expired_api_key_is_closed(guard: Guard, users: Users, ada: User) -> None:
    key, secret = users.add_api_key(user_id=ada.id, name="page")

    _, sent = run_websocket(echo_forever, guard, secret, lambda: users.remove_api_key(key_id=key.id))

    assert sent[-1] == {"type": "websocket.close", "code": 1008, "reason": "Invalid token"}


def test_websocket_closed_by_the_application_is_left_alone(guard: Guard, users: Users, token: str) -> None:
    async def close(socket: WebSocket, _events: list[object]) -> None:
        await socket.accept()
        await socket.close(4000)
        await asyncio.sleep(INTERVAL_SECONDS * 3)

    _, sent = run_websocket(close, guard, token, lambda: None)

    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]


def test_errors_of_a_websocket_pass_unchanged(guard: Guard, token: str) -> None:
    async def fail(socket: WebSocket, _events: list[object]) -> None:
        await socket.accept()
        raise WebSocketDisconnect(1001)

    with pytest.raises(WebSocketDisconnect):
        run_websocket(fail, guard, token, lambda: None)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_invalid_interval_is_rejected(guard: Guard, seconds: float) -> None:
    with pytest.raises(ValueError, match="recheck_seconds must be a positive number"):
        GuardMiddleware(Starlette(), guard, recheck_seconds=seconds)
