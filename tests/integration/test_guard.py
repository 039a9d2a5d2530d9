"""The guard in front of an application, in each of its faces."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import URL
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Host, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlapi import (
    Guard,
    InvalidTokenError,
    RepositoryUnavailableError,
    TokenIssuer,
    User,
    UserDisabledError,
    UserId,
    Users,
)
from mlapi.adapters.memory import InMemoryTokens, InMemoryUserRepository, PlainCipher
from mlapi.adapters.sql import Database, SqliteUserRepository, SqlUserRepository
from mlapi.application.preparation import Preparation, prepare_on_first_use
from mlapi.bootstrap import async_guard, open_service
from mlapi.config import load_settings
from mlapi.domain.commands import SetEnabled
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.users import utc_now
from mlapi.entrypoints.guard import GuardBackend, GuardMiddleware, handle_guard_error
from mlapi.testing import UnavailableRepository, assert_all_routes_guarded
from mlapi.testing.samples import registered


async def whoami(request: Request) -> JSONResponse:
    user = request.user
    return JSONResponse([user.id, user.username, user.display_name, user.identity, user.is_authenticated])


async def health(_request: Request) -> JSONResponse:
    return JSONResponse("alive")


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.user.username)
    await socket.close()


ROUTES = [
    Route("/whoami", whoami, methods=["GET", "POST"]),
    Route("/health", health),
    Route("/docs/{page:path}", health),
    WebSocketRoute("/echo", echo),
]


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def tokens() -> InMemoryTokens:
    return InMemoryTokens()


@pytest.fixture
def ada(users: Users) -> User:
    return users.register(username="ada", password="difference engine", email="ada@example.com")


@pytest.fixture
def http(users: Users, tokens: TokenIssuer) -> TestClient:
    guard = Guard(users.repository, tokens)
    return TestClient(GuardMiddleware(Starlette(routes=ROUTES), guard, exempt=["/health", "/docs/*"]))


@pytest.fixture
def answers() -> list[Message]:
    return []


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def answer(response: httpx2.Response) -> tuple[int, object]:
    return response.status_code, response.json()


# --- the middleware


@pytest.mark.parametrize("path", ["/whoami", "/health", "/docs/a"])
def test_a_request_whose_end_is_uncertain_goes_no_further_on_any_path(
    http: TestClient, tokens: TokenIssuer, ada: User, path: str
) -> None:
    headers = {**bearer(tokens.issue(ada).token), "connection": "upgrade", "upgrade": "h2c"}

    response = http.request("GET", path, headers=headers, content=b"GET /whoami HTTP/1.1")

    assert (response.status_code, response.headers["connection"]) == (400, "close")
    assert http.get(path, headers=headers).headers["connection"] == "close"


def test_who_is_let_in_is_known_to_the_endpoint(http: TestClient, tokens: TokenIssuer, ada: User) -> None:
    response = http.get("/whoami", headers=bearer(tokens.issue(ada).token))

    assert answer(response) == (200, [ada.id, "ada", "ada", str(ada.id), True])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer nonsense")],
        [("authorization", "Bearer é".encode())],
        [("authorization", "Basic YWRhOng=")],
        [("authorization", "Bearer {token}"), ("authorization", "Bearer {token}")],
        [("authorization", "Bearer {token}"), ("authorization", "Basic YWRhOng=")],
        [("authorization", "Bearer {token} ")],
        [("authorization", "Bearer  {token}")],
        [("authorization", "{token}")],
        [("x-authorization", "Bearer {token}")],
    ],
    ids=str,
)
def test_anything_but_one_good_credential_is_refused(
    http: TestClient, tokens: TokenIssuer, ada: User, headers: list[tuple[str, str | bytes]]
) -> None:
    token = tokens.issue(ada).token
    sent = [(name, value.format(token=token) if isinstance(value, str) else value) for name, value in headers]

    response = http.get("/whoami", headers=sent)  # type: ignore[arg-type]  # bytes too

    trimmed_by_http = headers == [("authorization", "Bearer {token} ")]
    assert response.status_code == (200 if trimmed_by_http else 401)
    if not trimmed_by_http:
        assert response.json() == {"message": "Invalid token"}
        assert response.headers["www-authenticate"] == "Bearer"


def test_the_scheme_is_written_in_any_case(http: TestClient, tokens: TokenIssuer, ada: User) -> None:
    response = http.get("/whoami", headers={"authorization": f"bEARER {tokens.issue(ada).token}"})

    assert response.status_code == 200


def test_who_is_disabled_is_told_so_and_nothing_else(http: TestClient, tokens: TokenIssuer, users: Users) -> None:
    ada = registered(users.repository)
    token = tokens.issue(ada).token
    users.set_enabled(user_id=ada.id, enabled=False)

    response = http.get("/whoami", headers=bearer(token))

    assert answer(response) == (403, {"message": "User is disabled"})


@pytest.mark.parametrize("path", ["/health", "/docs/", "/docs/a/b"])
def test_what_is_exempt_by_name_is_open(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/docsearch", "/health/", "/healthy", "/Health", "/nothing", "//health"]
)
def test_what_is_not_is_closed_also_where_there_is_nothing(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 401


@pytest.mark.parametrize(
    "path", ["/docs/../whoami", "/docs/./x", "/docs/..", "/docs/x/../../whoami", "/docs/..\\whoami", "/docs/a\\..\\x"]
)
def test_what_goes_up_again_is_not_below_what_is_exempt(
    users: Users, tokens: TokenIssuer, path: str, answers: list[Message]
) -> None:
    guarded = GuardMiddleware(Starlette(routes=ROUTES), Guard(users.repository, tokens), exempt=["/docs/*"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(guarded({"type": "http", "path": path, "headers": [], "method": "GET"}, receive, send))

    assert answers[0]["status"] == 401


def test_a_websocket_is_closed_before_it_is_accepted(http: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, http.websocket_connect("/echo"):
        pass

    assert closed.value.code == 1008


def test_a_websocket_of_a_user_is_open(http: TestClient, tokens: TokenIssuer, ada: User) -> None:
    with http.websocket_connect("/echo", headers=bearer(tokens.issue(ada).token)) as socket:
        assert socket.receive_text() == "ada"


def test_a_request_of_an_unknown_kind_is_closed(users: Users, tokens: TokenIssuer) -> None:
    reached = []

    async def reach(scope: Scope, _receive: Receive, _send: Send) -> None:
        reached.append(scope)

    async def receive() -> Message:
        return {}

    async def send(_message: Message) -> None:
        pass

    guarded = GuardMiddleware(reach, Guard(users.repository, tokens))
    asyncio.run(guarded({"type": "webtransport", "path": "/", "headers": []}, receive, send))

    assert reached == []


def test_guard_rejects_while_the_database_is_unavailable(tokens: TokenIssuer, ada: User) -> None:
    guard = Guard(UnavailableRepository(), tokens)
    http = TestClient(GuardMiddleware(Starlette(routes=ROUTES), guard, exempt=["/health"]))

    response = http.get("/whoami", headers=bearer(tokens.issue(ada).token))

    assert answer(response) == (503, {"message": "Service unavailable, try again"})
    assert response.headers["retry-after"] == "1"
    assert http.get("/health").status_code == 200


def test_below_a_mount_the_paths_are_those_of_the_application(users: Users, tokens: TokenIssuer, ada: User) -> None:
    guarded = GuardMiddleware(Starlette(routes=ROUTES), Guard(users.repository, tokens), exempt=["/health"])
    http = TestClient(Starlette(routes=[Mount("/model", guarded)]))

    answers = [http.get("/model/health"), http.get("/model/whoami"), http.get("/model/docs/x")]
    let_in = http.get("/model/whoami", headers=bearer(tokens.issue(ada).token))

    assert [answer.status_code for answer in answers] == [200, 401, 401]
    assert let_in.status_code == 200


def test_without_a_guard_it_reads_the_configuration_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_service(load_settings(environ={})) as opened:
        ada = registered(opened.users.repository)
        _, key = opened.users.add_api_key(user_id=ada.id, name="job")
    http = TestClient(GuardMiddleware(Starlette(routes=ROUTES)))

    before = http.get("/whoami", headers=bearer(key))
    with http:
        during = http.get("/whoami", headers=bearer(key))
    after = http.get("/whoami", headers=bearer(key))

    assert [response.status_code for response in (before, during, after)] == [503, 200, 503]


def test_a_start_that_is_refused_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("databse: {url: x}")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(GuardMiddleware(Starlette(routes=ROUTES))({"type": "lifespan"}, receive, send))

    refusal = "mlapi: config.yml: databse is not a setting; did you mean database?"
    assert sent == [{"type": "lifespan.startup.failed", "message": refusal}]


# --- Starlette's own authentication


@requires("authenticated", status_code=401)
async def members(request: Request) -> JSONResponse:
    return JSONResponse(request.user.username)


async def anybody(request: Request) -> JSONResponse:
    return JSONResponse([request.user.is_authenticated, request.user.display_name])


@contextmanager
def with_backend(users: Users, tokens: TokenIssuer) -> Iterator[TestClient]:
    with async_guard(Guard(users.repository, tokens)) as guard:
        authentication = Middleware(AuthenticationMiddleware, backend=GuardBackend(guard), on_error=handle_guard_error)
        routes = [Route("/members", members), Route("/anybody", anybody)]
        yield TestClient(Starlette(routes=routes, middleware=[authentication]))


def test_as_a_backend_it_leaves_it_to_the_endpoint_who_may_come(users: Users, tokens: TokenIssuer, ada: User) -> None:
    good = bearer(tokens.issue(ada).token)
    with with_backend(users, tokens) as http:
        let_in = [http.get("/members", headers=good), http.get("/anybody", headers=good), http.get("/anybody")]
        nobody = http.get("/members")
        forged = http.get("/anybody", headers=bearer("nonsense"))
        users.set_enabled(user_id=ada.id, enabled=False)
        disabled = http.get("/anybody", headers=good)

    assert [response.json() for response in let_in] == ["ada", [True, "ada"], [False, ""]]
    assert nobody.status_code == 401
    assert answer(forged) == (401, {"message": "Invalid token"})
    assert forged.headers["www-authenticate"] == "Bearer"
    assert answer(disabled) == (403, {"message": "User is disabled"})


# --- what a host's tests ask


class Resource(HTTPEndpoint):
    async def get(self, _request: Request) -> JSONResponse:
        return JSONResponse("open")


def guarded(app: ASGIApp) -> GuardMiddleware:
    return GuardMiddleware(app, Guard(InMemoryUserRepository(), InMemoryTokens()))


def test_an_application_that_is_closed_passes(tmp_path: Path) -> None:
    app = Starlette(
        routes=[
            *ROUTES,
            Route("/items/{item:int}/{key:uuid}", health, methods=["DELETE"]),
            Route("/resource", Resource),
            Mount("/below", routes=[Route("/x", health)]),
            Mount("/files", StaticFiles(directory=tmp_path)),
            Host("{sub}.example.com", Starlette(routes=[Route("/", health)])),
        ]
    )

    assert_all_routes_guarded(guarded(app))


def fails(_request: Request) -> JSONResponse:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("route", "named"),
    [
        (Route("/open", health), "GET /open, HEAD /open"),
        (Route("/open/{item:int}", health, methods=["PUT"]), "PUT /open/1"),
        (Route("/fails", fails, methods=["POST"]), "POST /fails"),
        (Mount("/below", routes=[Route("/x", health, methods=["POST"])]), "POST /below/x"),
        (Mount("/files", StaticFiles(directory="/")), "GET /files/probe"),
        (WebSocketRoute("/echo", echo), "WebSocket /echo"),
        (Host("api.example.com", Starlette(routes=[Route("/", health, methods=["PATCH"])])), "PATCH /"),
    ],
)
def test_a_route_that_is_open_is_named(route: Route, named: str) -> None:
    with pytest.raises(AssertionError) as failure:
        assert_all_routes_guarded(Starlette(routes=[route]))

    assert str(failure.value) == f"open without a credential: {named}"


def test_what_is_meant_to_be_open_may_be() -> None:
    app = GuardMiddleware(
        Starlette(routes=[Route("/health", health), Route("/docs/{page:path}", health)]),
        Guard(InMemoryUserRepository(), InMemoryTokens()),
        exempt=["/health", "/docs/*"],
    )

    assert_all_routes_guarded(app, exempt=["/health", "/docs/{page:path}"])


def test_a_route_of_a_kind_that_is_not_known_is_not_taken_for_closed() -> None:
    class Strange(BaseRoute):
        pass

    with pytest.raises(AssertionError, match="cannot check a route of type Strange"):
        assert_all_routes_guarded(guarded(Starlette(routes=[Strange()])))


def test_an_application_without_routes_is_no_application() -> None:
    with pytest.raises(AssertionError, match="no routes"):
        assert_all_routes_guarded(guarded(Starlette()))


# --- over a real database


@pytest.fixture
def guard_of(database: Database) -> Callable[[TokenIssuer], Guard]:
    kind = SqliteUserRepository if database.dialect.supports_nowait else SqlUserRepository
    return lambda tokens: Guard(kind(database), tokens)


def test_each_call_sees_what_was_acknowledged_before_it(
    guard_of: Callable[[TokenIssuer], Guard], tokens: InMemoryTokens
) -> None:
    guard = guard_of(tokens)
    repository = guard.repository
    ada = registered(repository)
    token = tokens.issue(ada).token

    async def seen() -> list[bool]:
        found = []
        with async_guard(guard) as asynchronous:
            for flag in [True, False] * 20:
                repository.apply([SetEnabled(user_id=ada.id, enabled=flag, at=utc_now(), token_epoch=ada.token_epoch)])
                try:
                    user = await asynchronous.check(token)
                    assert user == repository.get(ada.id)
                except UserDisabledError:
                    found.append(False)
                else:
                    found.append(True)
        return found

    assert asyncio.run(seen()) == [True, False] * 20


def test_many_at_once_are_each_told_about_their_own_user(
    guard_of: Callable[[TokenIssuer], Guard], tokens: InMemoryTokens
) -> None:
    guard = guard_of(tokens)
    people = [registered(guard.repository, f"user{number}") for number in range(50)]
    shown = [tokens.issue(user).token for user in people] + ["forged"]

    async def check_all() -> list[User | BaseException]:
        with async_guard(guard) as asynchronous:
            return await asyncio.gather(*map(asynchronous.check, shown), return_exceptions=True)

    assert asyncio.run(check_all()) == [*people, InvalidTokenError()]


def test_who_asks_no_more_is_answered_no_more(tokens: InMemoryTokens) -> None:
    class Away(InMemoryUserRepository):
        away = False

        def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
            if self.away:
                raise RepositoryUnavailableError("simulated outage")
            return super().find_principals(ids)

    repository = Away()
    token = tokens.issue(registered(repository)).token

    async def check_and_leave() -> list[object]:
        with async_guard(Guard(repository, tokens)) as guard:
            answers: list[object] = []
            for repository.away in (False, True):
                leaving, staying = asyncio.create_task(guard.check(token)), asyncio.create_task(guard.check(token))
                await asyncio.sleep(0)
                leaving.cancel()
                answers += await asyncio.gather(leaving, staying, return_exceptions=True)
            return answers

    left, let_in, left_again, unavailable = asyncio.run(check_and_leave())
    assert isinstance(let_in, User)
    assert [type(error) for error in (left, left_again, unavailable)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
        RepositoryUnavailableError,
    ]


def test_a_database_that_is_not_ready_is_made_ready_first(database: Database) -> None:
    made_ready = []
    repository = prepare_on_first_use(SqlUserRepository(database), Preparation(lambda: made_ready.append(True)))

    assert repository.find_principals([UserId(1)]) == repository.find_principals([UserId(1)]) == [None]
    assert made_ready == [True]


def test_a_database_that_somebody_keeps_for_himself_does_not_hold_up_the_loop(
    sqlite_database: Database, sqlite_url: URL, tokens: InMemoryTokens
) -> None:
    guard = Guard(SqliteUserRepository(sqlite_database), tokens)
    ada = registered(guard.repository)
    token = tokens.issue(ada).token
    turns = []

    async def check_and_count() -> User:
        with async_guard(guard) as asynchronous:
            await asynchronous.check(token)
            sqlite_database.engine.dispose()
            keeper = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
            sqlite_database.close()  # an exclusive lock is to be had while nobody else is there
            keeper.execute("PRAGMA locking_mode = EXCLUSIVE")
            keeper.execute("BEGIN IMMEDIATE")
            keeper.execute("COMMIT")
            checking = asyncio.create_task(asynchronous.check(token))
            for _ in range(20):
                begun = time.monotonic()
                await asyncio.sleep(0.01)
                turns.append(time.monotonic() - begun)
            assert not checking.done()
            keeper.close()
            return await checking

    assert asyncio.run(check_and_count()) == ada
    assert max(turns) < 1
