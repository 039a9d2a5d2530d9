"""The guard as middleware and as an authentication backend, the route check, and the guard on real databases."""

import asyncio
import gc
import sqlite3
import time
from collections.abc import Iterator, Sequence
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
    ConfigurationError,
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
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.repository import SqliteUserRepository, SqlUserRepository
from mlapi.application.preparation import Preparation, prepare_on_first_use
from mlapi.bootstrap import async_guard, open_service
from mlapi.config import load_settings
from mlapi.domain.commands import SetEnabled
from mlapi.domain.credentials import Principal, PrincipalId
from mlapi.domain.users import utc_now
from mlapi.entrypoints.guard import GuardBackend, GuardMiddleware, handle_guard_error
from mlapi.entrypoints.wire.errors import MissingCredentialError
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


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def content(response: httpx2.Response) -> tuple[int, object]:
    return response.status_code, response.json()


# --- the middleware


@pytest.mark.parametrize("path", ["/whoami", "/health", "/docs/a"])
def test_ambiguous_framing_is_rejected_on_every_path(
    http: TestClient, tokens: TokenIssuer, ada: User, path: str
) -> None:
    headers = {**bearer(tokens.issue(ada).token), "connection": "upgrade", "upgrade": "h2c"}

    response = http.request("GET", path, headers=headers, content=b"GET /whoami HTTP/1.1")

    assert (response.status_code, response.headers["connection"]) == (400, "close")
    assert http.get(path, headers=headers).headers["connection"] == "close"


def test_response_without_headers_closes_an_upgrade_request(users: Users, tokens: TokenIssuer) -> None:
    async def respond(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})  # headers are optional: ASGI specification
        await send({"type": "http.response.body"})

    http = TestClient(GuardMiddleware(respond, Guard(users.repository, tokens), exempt=["/health"]))

    response = http.get("/health", headers={"connection": "upgrade", "upgrade": "h2c"})

    assert (response.status_code, response.headers["connection"]) == (204, "close")


def test_endpoint_gets_the_authenticated_user(http: TestClient, tokens: TokenIssuer, ada: User) -> None:
    response = http.get("/whoami", headers=bearer(tokens.issue(ada).token))

    assert content(response) == (200, [ada.id, "ada", "ada", str(ada.id), True])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic YWRhOng=")],
        [("authorization", "{token}")],
        [("x-authorization", "Bearer {token}")],
        [("x-api-key", "")],
    ],
    ids=str,
)
def test_rejection_says_how_to_send_a_missing_credential(
    http: TestClient, tokens: TokenIssuer, ada: User, headers: list[tuple[str, str]]
) -> None:
    token = tokens.issue(ada).token

    response = http.get("/whoami", headers=[(name, value.format(token=token)) for name, value in headers])

    assert content(response) == (401, {"message": str(MissingCredentialError())})
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer nonsense")],
        [("authorization", "Bearer é".encode())],
        [("authorization", "Bearer {token}"), ("authorization", "Bearer {token}")],
        [("authorization", "Bearer {token}"), ("authorization", "Basic YWRhOng=")],
        [("x-api-key", "{token}")],
        [("x-api-key", "nonsense")],
        [("authorization", "Bearer {token}"), ("x-api-key", f"mlapi_{'0' * 16}_{'0' * 64}")],
    ],
    ids=str,
)
def test_request_without_one_valid_credential_is_rejected(
    http: TestClient, tokens: TokenIssuer, ada: User, headers: list[tuple[str, str | bytes]]
) -> None:
    token = tokens.issue(ada).token
    sent = [(name, value.format(token=token) if isinstance(value, str) else value) for name, value in headers]

    response = http.get("/whoami", headers=sent)  # type: ignore[arg-type]  # the type stubs do not allow bytes

    assert content(response) == (401, {"message": "Invalid token"})
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("accept_bare", [True, False])
def test_guard_accepts_a_token_without_a_scheme_if_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, accept_bare: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"MLAPI_DATABASE__URL": "memory://", "MLAPI_TOKENS__ACCEPT_BARE": str(accept_bare).lower()}
    with open_service(load_settings(environ=environ)) as service:
        zoe = service.users.register(username="zoe", password="difference engine", email="zoe@example.com")
        token = service.access.authenticator.log_in(username="zoe", password="difference engine").token
        http = TestClient(GuardMiddleware(Starlette(routes=ROUTES), service.access.guard))
        bare = {"authorization": token}

        response = http.get("/whoami", headers=bare)
        if accept_bare:
            assert content(response)[1] == [zoe.id, "zoe", "zoe", str(zoe.id), True]
            with http.websocket_connect("/echo", headers=bare) as socket:
                assert socket.receive_text() == "zoe"
        else:
            assert content(response) == (401, {"message": str(MissingCredentialError())})


@pytest.mark.parametrize("scheme", ["Bearer ", "Bearer   ", "bEARER "])
def test_token_may_follow_several_spaces(http: TestClient, tokens: TokenIssuer, ada: User, scheme: str) -> None:
    response = http.get("/whoami", headers={"authorization": f"{scheme}{tokens.issue(ada).token} "})

    assert response.status_code == 200


def test_scheme_is_case_insensitive(http: TestClient, tokens: TokenIssuer, ada: User) -> None:
    response = http.get("/whoami", headers={"authorization": f"bEARER {tokens.issue(ada).token}"})

    assert response.status_code == 200


def test_disabled_user_gets_403(http: TestClient, tokens: TokenIssuer, users: Users) -> None:
    ada = registered(users.repository)
    token = tokens.issue(ada).token
    users.set_enabled(user_id=ada.id, enabled=False)

    response = http.get("/whoami", headers=bearer(token))

    assert content(response) == (403, {"message": "User is disabled"})


@pytest.mark.parametrize("path", ["/health", "/docs/", "/docs/a/b"])
def test_exempt_paths_need_no_credential(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/docsearch", "/health/", "/healthy", "/Health", "/nothing", "//health"]
)
def test_all_other_paths_even_unknown_ones_need_a_credential(http: TestClient, path: str) -> None:
    assert http.get(path).status_code == 401


@pytest.mark.parametrize(
    "path", ["/docs/../whoami", "/docs/./x", "/docs/..", "/docs/x/../../whoami", "/docs/..\\whoami", "/docs/a\\..\\x"]
)
def test_path_with_parent_segments_is_not_exempt(users: Users, tokens: TokenIssuer, path: str) -> None:
    guarded = GuardMiddleware(Starlette(routes=ROUTES), Guard(users.repository, tokens), exempt=["/docs/*"])
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(guarded({"type": "http", "path": path, "headers": [], "method": "GET"}, receive, send))

    assert messages[0]["status"] == 401


def test_websocket_is_closed_before_it_is_accepted(http: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, http.websocket_connect("/echo"):
        pass

    assert closed.value.code == 1008


def test_websocket_with_a_valid_token_is_accepted(http: TestClient, tokens: TokenIssuer, ada: User) -> None:
    with http.websocket_connect("/echo", headers=bearer(tokens.issue(ada).token)) as socket:
        assert socket.receive_text() == "ada"


def test_unknown_scope_types_are_rejected(users: Users, tokens: TokenIssuer) -> None:
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


def test_guard_rejects_while_the_database_is_unavailable(
    tokens: TokenIssuer, ada: User, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(UnavailableRepository(), tokens)
    http = TestClient(GuardMiddleware(Starlette(routes=ROUTES), guard, exempt=["/health"]))

    response = http.get("/whoami", headers=bearer(tokens.issue(ada).token))

    assert content(response) == (503, {"message": "Service unavailable, try again"})
    assert response.headers["retry-after"] == "1"
    assert caplog.messages == ["guard: the database is unavailable: simulated outage"]
    assert http.get("/health").status_code == 200


def test_exempt_paths_are_relative_to_the_mount_point(users: Users, tokens: TokenIssuer, ada: User) -> None:
    guarded = GuardMiddleware(Starlette(routes=ROUTES), Guard(users.repository, tokens), exempt=["/health"])
    http = TestClient(Starlette(routes=[Mount("/model", guarded)]))

    responses = [http.get("/model/health"), http.get("/model/whoami"), http.get("/model/docs/x")]
    authenticated = http.get("/model/whoami", headers=bearer(tokens.issue(ada).token))

    assert [response.status_code for response in responses] == [200, 401, 401]
    assert authenticated.status_code == 200


def test_guard_from_config_opens_its_database_at_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    reasons = [message for message in caplog.messages if message.startswith("guard: ")]
    assert len(reasons) == 1  # at most one line a second
    assert reasons[0].startswith("guard: the guard is not open, because the application's lifespan did not run")
    assert "compose_lifespans" in reasons[0]


def test_startup_objects_are_not_garbage_collected(users: Users, tokens: TokenIssuer) -> None:
    gc.unfreeze()

    with TestClient(GuardMiddleware(Starlette(), Guard(users.repository, tokens))):
        assert gc.get_freeze_count() > 0

    gc.unfreeze()


def test_configuration_error_is_one_line_at_startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("databse: {url: x}")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(ConfigurationError):  # servers ignore an exception after the failure message
        asyncio.run(GuardMiddleware(Starlette(routes=ROUTES))({"type": "lifespan"}, receive, send))

    message = "mlapi: config.yml: databse is not a setting; did you mean database?"
    assert sent == [{"type": "lifespan.startup.failed", "message": message}]


# --- Starlette's own authentication


@requires("authenticated", status_code=401)
async def members(request: Request) -> JSONResponse:
    return JSONResponse(request.user.username)


async def anyone(request: Request) -> JSONResponse:
    return JSONResponse([request.user.is_authenticated, request.user.display_name])


@contextmanager
def with_backend(users: Users, tokens: TokenIssuer) -> Iterator[TestClient]:
    with async_guard(Guard(users.repository, tokens)) as guard:
        authentication = Middleware(AuthenticationMiddleware, backend=GuardBackend(guard), on_error=handle_guard_error)
        routes = [Route("/members", members), Route("/anyone", anyone)]
        yield TestClient(Starlette(routes=routes, middleware=[authentication]))


def test_backend_leaves_anonymous_users_to_the_endpoints(users: Users, tokens: TokenIssuer, ada: User) -> None:
    valid = bearer(tokens.issue(ada).token)
    with with_backend(users, tokens) as http:
        accepted = [http.get("/members", headers=valid), http.get("/anyone", headers=valid), http.get("/anyone")]
        anonymous = http.get("/members")
        forged = http.get("/anyone", headers=bearer("nonsense"))
        users.set_enabled(user_id=ada.id, enabled=False)
        disabled = http.get("/anyone", headers=valid)

    assert [response.json() for response in accepted] == ["ada", [True, "ada"], [False, ""]]
    assert anonymous.status_code == 401
    assert content(forged) == (401, {"message": "Invalid token"})
    assert forged.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert content(disabled) == (403, {"message": "User is disabled"})


# --- the route check


class Resource(HTTPEndpoint):
    async def get(self, _request: Request) -> JSONResponse:
        return JSONResponse("open")


def guarded(app: ASGIApp) -> GuardMiddleware:
    return GuardMiddleware(app, Guard(InMemoryUserRepository(), InMemoryTokens()))


def test_guarded_application_passes_the_route_check(tmp_path: Path) -> None:
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
    ("route", "names"),
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
def test_unguarded_route_is_named_in_the_error(route: Route, names: str) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_all_routes_guarded(Starlette(routes=[route]))

    assert str(raised.value) == f"open without a credential: {names}"


def test_exempt_routes_may_be_unguarded() -> None:
    app = GuardMiddleware(
        Starlette(routes=[Route("/health", health), Route("/docs/{page:path}", health)]),
        Guard(InMemoryUserRepository(), InMemoryTokens()),
        exempt=["/health", "/docs/*"],
    )

    assert_all_routes_guarded(app, exempt=["/health", "/docs/{page:path}"])


def test_unsupported_route_classes_fail_the_check() -> None:
    class UnknownRoute(BaseRoute):
        pass

    with pytest.raises(AssertionError, match="cannot check a route of type UnknownRoute"):
        assert_all_routes_guarded(guarded(Starlette(routes=[UnknownRoute()])))


def test_application_without_routes_fails_the_check() -> None:
    with pytest.raises(AssertionError, match="no routes"):
        assert_all_routes_guarded(guarded(Starlette()))


# --- with a real database


@pytest.fixture
def repository(database: Database) -> SqlUserRepository:
    return SqliteUserRepository(database) if database.dialect.supports_nowait else SqlUserRepository(database)


def test_checks_see_all_previously_acknowledged_changes(repository: SqlUserRepository, tokens: InMemoryTokens) -> None:
    guard = Guard(repository, tokens)
    ada = registered(repository)
    token = tokens.issue(ada).token

    async def check_after_each_change() -> list[bool]:
        results = []
        with async_guard(guard) as wrapper:
            for flag in [True, False] * 20:
                repository.apply([SetEnabled(user_id=ada.id, enabled=flag, at=utc_now(), token_epoch=ada.token_epoch)])
                try:
                    user = await wrapper.check(token)
                    assert user == repository.get(ada.id)
                except UserDisabledError:
                    results.append(False)
                else:
                    results.append(True)
        return results

    assert asyncio.run(check_after_each_change()) == [True, False] * 20


def test_concurrent_checks_return_the_right_users(repository: SqlUserRepository, tokens: InMemoryTokens) -> None:
    guard = Guard(repository, tokens)
    people = [registered(repository, f"user{number}") for number in range(50)]
    credentials = [tokens.issue(user).token for user in people] + ["forged"]

    async def check_all() -> list[User | BaseException]:
        with async_guard(guard) as wrapper:
            return await asyncio.gather(*map(wrapper.check, credentials), return_exceptions=True)

    assert asyncio.run(check_all()) == [*people, InvalidTokenError()]


def test_canceled_check_does_not_affect_others(tokens: InMemoryTokens) -> None:
    class FailingRepository(InMemoryUserRepository):
        is_failing = False

        def find_principals(self, ids: Sequence[PrincipalId]) -> list[Principal | None]:
            if self.is_failing:
                raise RepositoryUnavailableError("simulated outage")
            return super().find_principals(ids)

    repository = FailingRepository()
    token = tokens.issue(registered(repository)).token

    async def check_and_cancel() -> list[object]:
        with async_guard(Guard(repository, tokens)) as guard:
            results: list[object] = []
            for repository.is_failing in (False, True):
                canceled, kept = asyncio.create_task(guard.check(token)), asyncio.create_task(guard.check(token))
                await asyncio.sleep(0)
                canceled.cancel()
                results += await asyncio.gather(canceled, kept, return_exceptions=True)
            return results

    canceled, user, canceled_again, unavailable = asyncio.run(check_and_cancel())
    assert isinstance(user, User)
    assert [type(error) for error in (canceled, canceled_again, unavailable)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
        RepositoryUnavailableError,
    ]


def test_database_is_prepared_on_the_first_lookup(database: Database) -> None:
    prepared = []
    repository = prepare_on_first_use(SqlUserRepository(database), Preparation(lambda: prepared.append(True)))

    assert repository.find_principals([UserId(1)]) == repository.find_principals([UserId(1)]) == [None]
    assert prepared == [True]


def test_locked_database_does_not_block_the_event_loop(
    sqlite_database: Database, sqlite_url: URL, tokens: InMemoryTokens
) -> None:
    repository = SqliteUserRepository(sqlite_database)
    guard = Guard(repository, tokens)
    ada = registered(repository)
    token = tokens.issue(ada).token
    loop_seconds = []

    async def check_and_count() -> User:
        with async_guard(guard) as wrapper:
            await wrapper.check(token)
            sqlite_database.engine.dispose()
            locker = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
            sqlite_database.close()  # an exclusive lock requires all other connections to be closed
            locker.execute("PRAGMA locking_mode = EXCLUSIVE")
            locker.execute("BEGIN IMMEDIATE")
            locker.execute("COMMIT")
            checking = asyncio.create_task(wrapper.check(token))
            for _ in range(20):
                started = time.monotonic()
                await asyncio.sleep(0.01)
                loop_seconds.append(time.monotonic() - started)
            assert not checking.done()
            locker.close()
            return await checking

    assert asyncio.run(check_and_count()) == ada
    assert max(loop_seconds) < 1
