"""Middleware, dependencies and `Guard` enforce limits, and store charged units before the response ends."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from mlapi import Access, Guard, RepositoryUnavailableError, User, Users
from mlapi.adapters.memory import InMemoryUsage
from mlapi.application import charges
from mlapi.application.charges import BackgroundCharges
from mlapi.bootstrap import async_guard
from mlapi.domain.errors import ReadOnlyRepositoryError
from mlapi.domain.plans import Plans, RequestLimitReachedError
from mlapi.entrypoints.guard import AdmissionMiddleware, GuardBackend, GuardMiddleware, handle_guard_error
from mlapi.entrypoints.http import create_app
from mlapi.testing import LoggedInUser, SettableClock, make_plans
from tests.waiting import wait_until

pytest_plugins = ["mlapi.testing.fixtures"]

POLICY = '"requests per minute";q=3;w=60, "units per day";q=100;w=86400'


@pytest.fixture
def mlapi_plans() -> Plans:
    return make_plans({"free": {"per_minute": 3, "units_per_day": 100}, "staff": {}}, default_plan="free")


@pytest.fixture
def ada(mlapi_enabled_user: LoggedInUser) -> LoggedInUser:
    return mlapi_enabled_user


async def predict(request: Request) -> Response:
    assert request.user.plan == "free"
    return PlainTextResponse("setosa")


async def chat(request: Request) -> Response:
    async def stream() -> Any:
        for word in ("one ", "two ", "three"):
            yield word
        request.scope["mlapi"].charge(30)

    return StreamingResponse(stream())


async def work_in_thread(request: Request) -> Response:
    await run_in_threadpool(request.scope["mlapi"].charge, 30)
    return PlainTextResponse("done")


async def charge_later(request: Request) -> Response:
    return PlainTextResponse("done", background=BackgroundTask(request.scope["mlapi"].charge, 30))


async def fail(request: Request) -> Response:
    request.scope["mlapi"].charge(30)
    raise RuntimeError("the model has failed")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        try:
            await socket.receive_text()
        except WebSocketDisconnect:
            return
        socket.scope["mlapi"].charge(30)
        await socket.send_text("charged")


ROUTES = [
    Route("/predict", predict, methods=["GET", "POST"]),
    Route("/chat", chat),
    Route("/thread", work_in_thread),
    Route("/later", charge_later),
    Route("/fail", fail),
    Route("/health", predict),
    WebSocketRoute("/talk", talk),
]


def in_middleware(guard: Guard, stack: ExitStack, routes: Sequence[BaseRoute] = ROUTES) -> Any:
    wrapped = stack.enter_context(async_guard(guard))
    middleware = GuardMiddleware(Starlette(routes=routes), guard)
    middleware._async_guard = wrapped
    return middleware


def in_backend(guard: Guard, stack: ExitStack, routes: Sequence[BaseRoute] = ROUTES) -> Any:
    backend = GuardBackend(stack.enter_context(async_guard(guard)))
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(AdmissionMiddleware),
            Middleware(AuthenticationMiddleware, backend=backend, on_error=handle_guard_error),
        ],
    )


@pytest.fixture(params=[in_middleware, in_backend])
def client(request: pytest.FixtureRequest, mlapi_guard: Guard, ada: LoggedInUser) -> Iterator[TestClient]:
    with (
        ExitStack() as stack,
        TestClient(request.param(mlapi_guard, stack), headers=ada.headers, raise_server_exceptions=False) as client,
    ):
        yield client


def units_left(guard: Guard, user: LoggedInUser) -> int:
    (_, units) = guard.admit(user.token, cost=0).limits
    return units.remaining


def usage_of(usage: InMemoryUsage) -> tuple[int, int]:
    (row,) = usage.list_page(limit=2)
    return row.requests, row.units


def test_requests_over_the_limit_are_rejected(client: TestClient, mlapi_clock: SettableClock) -> None:
    responses = [client.post("/predict") for _ in range(4)]

    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert responses[-1].json() == {"message": "Request limit reached: 3 per minute"}
    assert responses[-1].headers["retry-after"] == "60"
    mlapi_clock.now += timedelta(minutes=1)
    assert client.get("/predict").status_code == 200


def test_every_guarded_response_has_the_rate_limit_fields(client: TestClient) -> None:
    responses = [client.get(path) for path in ("/predict", "/missing", "/predict", "/predict")]

    assert [response.status_code for response in responses] == [200, 404, 200, 429]
    assert {response.headers["ratelimit-policy"] for response in responses} == {POLICY}
    assert [response.headers["ratelimit"].split(",")[0] for response in responses] == [
        f'"requests per minute";r={left};t=60' for left in (2, 1, 0, 0)
    ]


def test_rejected_requests_are_not_usage(client: TestClient, mlapi_guard: Guard, mlapi_usage: InMemoryUsage) -> None:
    for _ in range(6):
        client.get("/predict")

    assert usage_of(mlapi_usage) == (3, 0)
    assert mlapi_guard.decisions == {"admitted": 3, "request_limit_reached": 3}


def test_fields_are_sent_once_by_nested_middleware(mlapi_guard: Guard, ada: LoggedInUser) -> None:
    app = AdmissionMiddleware(GuardMiddleware(Starlette(routes=ROUTES), mlapi_guard))
    with TestClient(app, headers=ada.headers) as client:
        response = client.get("/predict")

    assert response.headers.get_list("ratelimit-policy") == [POLICY]


@pytest.mark.parametrize("path", ["/chat", "/thread", "/later", "/fail"])
def test_charged_units_are_stored(
    client: TestClient, path: str, mlapi_guard: Guard, mlapi_usage: InMemoryUsage, ada: LoggedInUser
) -> None:
    client.get(path)

    wait_until(lambda: units_left(mlapi_guard, ada) == 70)
    assert usage_of(mlapi_usage) == (1, 30)


def test_units_may_exceed_the_limit_once(mlapi_guard: Guard, ada: LoggedInUser) -> None:
    admission = mlapi_guard.admit(ada.token)
    admission.charge(70)
    mlapi_guard.admit(ada.token).charge(70)

    with pytest.raises(RequestLimitReachedError, match="Request limit reached: 100 units per day"):
        mlapi_guard.check(ada.token)


@pytest.mark.parametrize("wrapper", [in_middleware, in_backend])
def test_units_are_stored_before_the_response_ends(
    wrapper: Callable[..., Any], mlapi_guard: Guard, ada: LoggedInUser
) -> None:
    left: list[tuple[str, int]] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            left.append((message["type"], units_left(mlapi_guard, ada)))

    with ExitStack() as stack:
        asyncio.run(wrapper(mlapi_guard, stack)(scope_of("/chat", ada), receive, send))

    assert left == [("http.response.body", 70)]


def scope_of(path: str, user: LoggedInUser) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in user.headers.items()],
    }


async def receive() -> Any:
    await asyncio.Event().wait()  # no handler reads the body, and the client stays connected


async def tolerate_disconnect(app: Any, scope: dict[str, Any], send: Any) -> None:
    with suppress(OSError, ClientDisconnect):
        await app(scope, receive, send)


@pytest.mark.parametrize("wrapper", [in_middleware, in_backend])
def test_units_are_stored_if_the_client_disconnects(
    wrapper: Callable[..., Any], mlapi_guard: Guard, ada: LoggedInUser
) -> None:
    async def chat_until_disconnect(request: Request) -> Response:
        async def stream() -> Any:
            try:
                yield "one "
                yield "two "
            finally:
                request.scope["mlapi"].charge(30)

        return StreamingResponse(stream())

    async def send(message: Any) -> None:
        if message.get("body") == b"two ":
            raise OSError("the client has disconnected")

    with ExitStack() as stack:
        app = wrapper(mlapi_guard, stack, [Route("/chat", chat_until_disconnect)])
        asyncio.run(tolerate_disconnect(app, scope_of("/chat", ada), send))

        wait_until(lambda: units_left(mlapi_guard, ada) == 70)


def test_websocket_is_one_request_and_can_be_charged(
    mlapi_guard: Guard, mlapi_usage: InMemoryUsage, ada: LoggedInUser
) -> None:
    app = GuardMiddleware(Starlette(routes=ROUTES), mlapi_guard)
    with TestClient(app, headers=ada.headers) as client, client.websocket_connect("/talk") as socket:
        for _ in range(2):
            socket.send_text("hello")
            socket.receive_text()

    assert units_left(mlapi_guard, ada) == 40  # the middleware has stored them when its lifespan ended
    assert usage_of(mlapi_usage) == (1, 60)


def test_websocket_over_the_limit_is_rejected(mlapi_guard: Guard, ada: LoggedInUser) -> None:
    for _ in range(3):
        mlapi_guard.check(ada.token)
    app = GuardMiddleware(Starlette(routes=ROUTES), mlapi_guard)

    with TestClient(app, headers=ada.headers) as client, pytest.raises(WebSocketDisconnect):
        client.websocket_connect("/talk").__enter__()


def test_preflights_and_exempt_paths_cost_nothing(
    mlapi_guard: Guard, mlapi_usage: InMemoryUsage, ada: LoggedInUser
) -> None:
    app = GuardMiddleware(PlainTextResponse("ok"), mlapi_guard, exempt=["/health"])
    client = TestClient(app)

    preflight = client.options(
        "/predict", headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    )
    exempt = client.get("/health", headers=ada.headers)

    assert (preflight.status_code, exempt.status_code) == (200, 200)
    assert mlapi_usage.list_page(limit=1) == []
    assert "ratelimit" not in exempt.headers


def test_cost_of_zero_fails_if_the_limit_is_reached(
    mlapi_guard: Guard, mlapi_usage: InMemoryUsage, ada: LoggedInUser
) -> None:
    for _ in range(5):
        mlapi_guard.admit(ada.token, cost=0)
    for _ in range(3):
        mlapi_guard.admit(ada.token)

    with pytest.raises(RequestLimitReachedError):
        mlapi_guard.admit(ada.token, cost=0)

    assert usage_of(mlapi_usage) == (3, 0)


def test_identify_neither_counts_nor_limits(mlapi_guard: Guard, ada: LoggedInUser) -> None:
    for _ in range(5):
        assert mlapi_guard.identify(ada.token) == ada.user

    assert mlapi_guard.decisions == {"admitted": 0}


def test_async_guard_charges_durably(mlapi_guard: Guard, mlapi_usage: InMemoryUsage, ada: LoggedInUser) -> None:
    async def charge() -> int:
        with async_guard(mlapi_guard) as guard:
            user = await guard.check(ada.token)
            await guard.charge(user, 30)
            return units_left(mlapi_guard, ada)

    assert asyncio.run(charge()) == 70
    assert usage_of(mlapi_usage) == (1, 30)


# --- units that cannot be stored at once


class FlakyCharges:
    """Fails with these errors, one for each call, before it stores units."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.stored: list[tuple[User, int]] = []

    def __call__(self, charges: Sequence[tuple[User, int]]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.stored += charges


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charges, "RETRY_SECONDS", 0.01)


def test_units_are_stored_after_an_outage(ada: LoggedInUser) -> None:
    flaky = FlakyCharges(RepositoryUnavailableError("outage"), RepositoryUnavailableError("outage"))
    background = BackgroundCharges(flaky, interval_seconds=0.01)

    background.add(ada.user, 5)
    background.add(ada.user, 6)
    wait_until(lambda: flaky.stored)

    assert flaky.stored == [(ada.user, 11)]
    background.close()


def test_units_are_not_stored_twice_after_a_lost_commit(ada: LoggedInUser, caplog: pytest.LogCaptureFixture) -> None:
    flaky = FlakyCharges(RepositoryUnavailableError("cut", may_be_done=True))
    background = BackgroundCharges(flaky)

    background.add(ada.user, 5)
    background.close()

    assert flaky.stored == []
    (message,) = caplog.messages
    assert message == (
        "5 charged units may not be stored, and are not stored again, because they could count twice: the"
        " database is unavailable: cut"
    )


def test_units_that_are_lost_at_shutdown_are_logged(ada: LoggedInUser, caplog: pytest.LogCaptureFixture) -> None:
    background = BackgroundCharges(FlakyCharges(*[RepositoryUnavailableError("outage")] * 2))

    background.add(ada.user, 5)
    background.close()

    assert "5 charged units are lost: the database is unavailable: outage" in caplog.messages


def test_units_charged_after_close_are_stored_immediately(ada: LoggedInUser) -> None:
    flaky = FlakyCharges()
    background = BackgroundCharges(flaky)
    background.close()

    background.add(ada.user, 5)

    assert flaky.stored == [(ada.user, 5)]


def test_users_are_rejected_if_their_units_cannot_be_stored(
    mlapi_guard: Guard, ada: LoggedInUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If such requests were admitted, a user with limited units would never reach the limit."""
    assert mlapi_guard.limiter is not None
    read_only = FlakyCharges(*[ReadOnlyRepositoryError("read-only")] * 3)
    monkeypatch.setattr(mlapi_guard.limiter, "charge_all", read_only)
    monkeypatch.setattr(charges, "RETRY_SECONDS", 60)

    async def charge() -> None:
        with async_guard(mlapi_guard) as guard:
            admission = await guard.admit(ada.token)
            admission.charge(30)
            await admission.settle()
            with pytest.raises(ReadOnlyRepositoryError):
                await guard.admit(ada.token)

    asyncio.run(charge())

    assert mlapi_guard.decisions == {"admitted": 1, "read_only_repository": 1}


def test_unexpected_failure_is_logged_and_ends_nothing(ada: LoggedInUser, caplog: pytest.LogCaptureFixture) -> None:
    flaky = FlakyCharges(ZeroDivisionError())
    background = BackgroundCharges(flaky, interval_seconds=0.01)

    background.add(ada.user, 5)
    wait_until(lambda: caplog.messages)
    background.add(ada.user, 6)
    background.close()

    assert flaky.stored == [(ada.user, 6)]
    assert caplog.messages == ["5 charged units are lost"]


# --- plans without limits


@pytest.mark.parametrize("wrapper", [in_middleware, in_backend])
def test_plan_without_limits_has_no_rate_limit_fields(
    mlapi_users: Users, mlapi_guard: Guard, mlapi_usage: InMemoryUsage, ada: LoggedInUser, wrapper: Callable[..., Any]
) -> None:
    mlapi_users.update(user_id=ada.user.id, plan="staff")

    with ExitStack() as stack, TestClient(wrapper(mlapi_guard, stack), headers=ada.headers) as client:
        responses = [client.get("/chat") for _ in range(5)]

    assert {response.status_code for response in responses} == {200}
    assert not any("ratelimit" in response.headers for response in responses)
    assert usage_of(mlapi_usage) == (5, 150)


# --- /verify


@pytest.fixture
def proxy(mlapi_access: Access, ada: LoggedInUser) -> Iterator[TestClient]:
    with TestClient(create_app(mlapi_access.authenticator.users, access=mlapi_access), headers=ada.headers) as client:
        yield client


def test_verify_enforces_limits_and_counts(proxy: TestClient, mlapi_usage: InMemoryUsage) -> None:
    responses = [proxy.post("/verify") for _ in range(4)]

    assert [response.status_code for response in responses] == [200, 200, 200, 429]
    assert responses[-1].json() == {"message": "Request limit reached: 3 per minute"}
    assert {response.headers["ratelimit-policy"] for response in responses} == {POLICY}
    assert [response.headers.get("x-auth-request-plan") for response in responses] == ["free"] * 3 + [None]
    assert usage_of(mlapi_usage) == (3, 0)


def test_verify_with_cost_zero_counts_nothing(proxy: TestClient, mlapi_usage: InMemoryUsage) -> None:
    asked = [proxy.get("/verify?cost=0").status_code for _ in range(5)]
    for _ in range(3):
        proxy.get("/verify")

    assert asked == [200] * 5
    assert proxy.get("/verify?cost=0").status_code == 429
    assert usage_of(mlapi_usage) == (3, 0)


def test_own_endpoints_of_the_service_are_not_limited(proxy: TestClient, mlapi_usage: InMemoryUsage) -> None:
    statuses = {proxy.get(path).status_code for _ in range(5) for path in ("/users/me", "/token_status")}

    assert statuses == {200}
    assert mlapi_usage.list_page(limit=1) == []
