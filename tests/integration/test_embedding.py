"""The service mounted in another application: its lifespan, and its pages and access rules below the mount."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from mlapi import ConfigurationError, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import open_users
from mlapi.config import load_settings
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.guard import GuardMiddleware
from mlapi.entrypoints.http import compose_lifespans, create_app
from mlapi.entrypoints.http.request_context import NOT_STARTED
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.contract.test_http import asgi_client

ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
CREDENTIALS = {"username": "ada", "password": "difference engine"}
AS_ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recording_lifespan(
    events: list[str], name: str, error: Exception | None = None
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, str]]]:
    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[dict[str, str]]:
        events.append(f"start {name}")
        if error is not None:
            raise error
        try:
            yield {name: "started"}
        finally:
            events.append(f"stop {name}")

    return lifespan


# --- without the lifespan


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_mounted_service_without_lifespan_names_the_remedy(method: str) -> None:
    http = asgi_client(Starlette(routes=[Mount("/people", create_app())]))
    paths = ["/", "/users", "/token_status/secret", "/console/log-in", "/docs", "/openapi.json", "/unknown"]

    responses = [http.request(method, f"/people{path}") for path in paths]

    assert [response.status_code for response in responses] == [503] * len(paths)
    assert all(method == "HEAD" or response.json() == {"message": NOT_STARTED} for response in responses)
    assert "compose_lifespans" in NOT_STARTED
    headers = responses[0].headers
    assert (headers["content-type"], headers["retry-after"]) == ("application/json", "10")
    assert headers["x-content-type-options"] == "nosniff"


def test_missing_lifespan_is_logged_once_per_second(caplog: pytest.LogCaptureFixture) -> None:
    http = asgi_client(create_app())

    for _ in range(3):
        http.get("/users")

    assert caplog.messages == [NOT_STARTED]


# --- composed lifespans


class QuotaError(Exception):
    pass


class QuotaCipher(PlainCipher):
    def encrypt(self, password: str) -> EncryptedPassword:
        raise QuotaError


async def handle_quota_error(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"message": "quota"}, 507)


def test_own_exception_handlers_receive_errors_of_operations() -> None:
    app = create_app(Users(InMemoryUserRepository(), QuotaCipher()))
    app.add_exception_handler(QuotaError, handle_quota_error)

    with TestClient(app) as client:
        response = client.post("/register-user", json=ADA)

    assert (response.status_code, response.json()) == (507, {"message": "quota"})


@pytest.mark.parametrize("root_path", ["", "/users"])
def test_mount_point_may_equal_the_path_of_an_operation(root_path: str) -> None:
    app = create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE)
    outer = Starlette(routes=[Mount(root_path, app)], lifespan=compose_lifespans(app))

    with TestClient(outer, base_url="http://127.0.0.1:8001", client=("127.0.0.1", 50_000)) as client:
        statuses = [client.get(f"{root_path}{path}").status_code for path in ("/users", "/users/me", "/health/live")]

    assert statuses == [200, 401, 200]


def test_mounted_service_starts_with_the_outer_application(folder: Path) -> None:
    events: list[str] = []
    people = create_app()
    app = FastAPI(lifespan=compose_lifespans(people, lifespan=recording_lifespan(events, "own")))
    app.mount("/people", people)

    @app.get("/state")
    async def state(request: Request) -> str:
        own: str = request.state.own
        return own

    with asgi_client(app) as http:
        registered = http.post("/people/register-user", json=ADA)
        own = http.get("/state").json()

    assert (registered.status_code, own) == (201, "started")
    assert events == ["start own", "stop own"]
    assert (folder / "mlapi.db").exists()


def test_two_services_can_be_mounted(folder: Path) -> None:
    people, staff = create_app(), create_app()
    app = Starlette(
        routes=[Mount("/people", people), Mount("/staff", staff)], lifespan=compose_lifespans(people, staff)
    )

    with asgi_client(app) as http:
        first = http.post("/people/register-user", json=ADA)
        second = http.post("/staff/register-user", json=ADA)  # both use the configured database

    assert (first.status_code, second.status_code) == (201, 409)


def test_composed_lifespan_opens_the_guard_of_a_mounted_model(folder: Path) -> None:
    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(request.user.username)

    people = create_app()
    model = FastAPI()
    model.add_route("/predict", predict)
    model.add_middleware(GuardMiddleware)
    app = FastAPI(lifespan=compose_lifespans(people, model))
    app.mount("/people", people)
    app.mount("/model", model)

    with asgi_client(app) as http:
        http.post("/people/register-user", json=ADA)
        token = http.post("/people/token", json=CREDENTIALS).json()["token"]
        answer = http.get("/model/predict", headers={"Authorization": f"Bearer {token}"})

    assert (answer.status_code, answer.json()) == (200, "ada")


def test_guarded_application_may_mount_the_service_itself(folder: Path) -> None:
    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(request.user.username)

    people = create_app()
    app = FastAPI(lifespan=compose_lifespans(people))
    app.mount("/people", people)
    app.add_route("/predict", predict)
    app.add_middleware(GuardMiddleware, exempt=["/people/*"])

    with asgi_client(app) as http:  # the folder is empty: the service creates the database that the guard opens
        http.post("/people/register-user", json=ADA)
        token = http.post("/people/token", json=CREDENTIALS).json()["token"]
        answer = http.get("/predict", headers={"Authorization": f"Bearer {token}"})

    assert (answer.status_code, answer.json()) == (200, "ada")


def test_application_stops_if_its_guard_cannot_be_opened(folder: Path) -> None:
    events: list[str] = []
    app = Starlette(lifespan=recording_lifespan(events, "own"), middleware=[Middleware(GuardMiddleware)])

    with pytest.raises(ConfigurationError, match=r"^there is no database at "), asgi_client(app):
        pass

    assert events == ["start own", "stop own"]


async def raises_on_lifespan(scope: Scope, _receive: Receive, _send: Send) -> None:
    assert scope["type"] == "http"


async def returns_on_lifespan(_scope: Scope, receive: Receive, _send: Send) -> None:
    await receive()


@pytest.mark.parametrize("app", [raises_on_lifespan, returns_on_lifespan])
def test_guard_opens_for_applications_without_a_lifespan(folder: Path, app: ASGIApp) -> None:
    with open_users(load_settings()):
        pass

    with asgi_client(GuardMiddleware(app)) as http:
        answer = http.get("/predict")

    assert answer.status_code == 401


def test_error_of_a_started_application_is_raised(folder: Path) -> None:
    async def fails_at_shutdown(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ZeroDivisionError

    with open_users(load_settings()):
        pass

    with pytest.raises(ZeroDivisionError), asgi_client(GuardMiddleware(fails_at_shutdown)):
        pass


def test_own_lifespan_works_together_with_the_guard(folder: Path) -> None:
    with open_users(load_settings()):
        pass
    events: list[str] = []
    app = FastAPI(lifespan=recording_lifespan(events, "own"))
    app.add_middleware(GuardMiddleware, exempt=["/health"])

    with asgi_client(app) as http:
        answers = [http.get("/health").status_code, http.get("/predict").status_code]

    assert answers == [404, 401]
    assert events == ["start own", "stop own"]


def test_lifespans_stop_in_reverse_order() -> None:
    events: list[str] = []
    first, second = (Starlette(lifespan=recording_lifespan(events, name)) for name in ("first", "second"))
    app = Starlette(lifespan=compose_lifespans(first, second, lifespan=recording_lifespan(events, "own")))

    with TestClient(app):
        events.append("serve")

    started, stopped = ["start own", "start first", "start second"], ["stop second", "stop first", "stop own"]
    assert events == [*started, "serve", *stopped]


def test_lifespans_stop_if_a_later_one_fails_to_start() -> None:
    events: list[str] = []
    first = Starlette(lifespan=recording_lifespan(events, "first"))
    second = Starlette(lifespan=recording_lifespan(events, "second", ZeroDivisionError()))
    app = Starlette(lifespan=compose_lifespans(first, second, lifespan=recording_lifespan(events, "own")))

    with pytest.raises(ZeroDivisionError), TestClient(app):
        pass

    assert events == ["start own", "start first", "start second", "stop first", "stop own"]


def test_other_lifespans_stop_if_one_fails_at_shutdown() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def fails_at_shutdown(_app: object) -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError

    first = Starlette(lifespan=recording_lifespan(events, "first"))
    app = Starlette(lifespan=compose_lifespans(first, Starlette(lifespan=fails_at_shutdown)))

    with pytest.raises(ZeroDivisionError), TestClient(app):
        pass

    assert events == ["start first", "stop first"]


def test_configuration_error_of_a_mounted_service_is_raised(folder: Path) -> None:
    (folder / "config.yml").write_text("databse: {url: x}")
    app = Starlette(lifespan=compose_lifespans(create_app()))

    with pytest.raises(ConfigurationError, match=r"^config\.yml: databse is not a setting"), TestClient(app):
        pass


async def ignores_lifespans(_scope: Scope, receive: Receive, _send: Send) -> None:
    await receive()


async def stops_early(_scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


def test_application_without_lifespan_support_cannot_be_composed() -> None:
    app = Starlette(lifespan=compose_lifespans(ignores_lifespans))

    with pytest.raises(ConfigurationError, match="does not support the lifespan protocol"), TestClient(app):
        pass


def test_application_may_end_its_lifespan_early() -> None:
    with TestClient(Starlette(lifespan=compose_lifespans(stops_early))):
        pass


def test_failure_that_an_application_only_reports_is_raised() -> None:
    async def reports_failure(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the model is missing"})

    app = Starlette(lifespan=compose_lifespans(reports_failure))

    with pytest.raises(ConfigurationError, match="the model is missing"), TestClient(app):
        pass


def test_canceled_startup_cancels_the_mounted_application() -> None:
    canceled = []

    async def never_starts(_scope: Scope, receive: Receive, _send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.append(True)
            raise

    async def start_and_cancel() -> None:
        async with asyncio.timeout(0.01), compose_lifespans(never_starts)(None):
            pass

    with pytest.raises(TimeoutError):
        asyncio.run(start_and_cancel())

    assert canceled == [True]


# --- pages and rules below the mount


def mounted(policy: AdminPolicy) -> TestClient:
    service = create_app(Users(InMemoryUserRepository(), PlainCipher()), policy)
    return asgi_client(Starlette(routes=[Mount("/tools", routes=[Mount("/people", service)])]))


@pytest.mark.parametrize(
    "path", ["/users", "/users/1", "/audit", "/metrics", "/docs", "/openapi.json", "/unknown", "/"]
)
def test_management_needs_the_admin_token_below_a_mount(path: str) -> None:
    http = mounted(AdminPolicy(admin_token=ADMIN_TOKEN))

    assert http.get(f"/tools/people{path}").status_code == 401
    assert http.get(f"/tools/people{path}", headers=AS_ADMIN).status_code != 401


@pytest.mark.parametrize(
    "path", ["/tools/people/tools/people/users", "/tools/people//users", "/tools/people/health/live/../../users"]
)
def test_other_spellings_of_management_paths_stay_closed(path: str) -> None:
    assert mounted(AdminPolicy(admin_token=ADMIN_TOKEN)).get(path).status_code in {401, 404}


def test_local_mode_works_below_a_mount() -> None:
    http = mounted(LOCAL_MODE)
    user_id = http.post("/tools/people/register-user", json=ADA).json()["user_id"]

    toggled = http.put(f"/tools/people/toggle-user-permission/{user_id}/0")
    through_proxy = http.get("/tools/people/users", headers={"X-Forwarded-For": "192.0.2.1"})
    from_page = http.get("/tools/people/users", headers={"Origin": "https://evil.example"})

    assert (toggled.status_code, through_proxy.status_code, from_page.status_code) == (200, 403, 403)


def test_console_links_forms_and_redirects_stay_below_the_mount() -> None:
    http = mounted(AdminPolicy(admin_token=ADMIN_TOKEN))

    redirected = http.get("/tools/people/console", follow_redirects=False)
    page = http.get(redirected.headers["location"])
    targets = set(re.findall(r'(?:href|src|action)="(/[^"]*)"', page.text))

    assert redirected.headers["location"].startswith("/tools/people/console/")
    assert targets
    assert [target for target in targets if not target.startswith("/tools/people/")] == []
    assert {target: http.get(target).status_code for target in targets} == dict.fromkeys(targets, 200)


def test_cookies_are_limited_to_the_mounted_console() -> None:
    http = mounted(AdminPolicy(admin_token=ADMIN_TOKEN))
    origin = {"Origin": "http://127.0.0.1:8001", "Sec-Fetch-Site": "same-origin"}

    form = {"token": ADMIN_TOKEN}
    logged_in = http.post("/tools/people/console/log-in", data=form, headers=origin, follow_redirects=False)
    users_page = http.get(logged_in.headers["location"])

    assert logged_in.headers["location"] == "/tools/people/console"
    assert "; Path=/tools/people/console;" in logged_in.headers["set-cookie"]
    assert "/tools/people/console/users/new" in users_page.text


def test_docs_below_a_mount_find_their_files_and_the_description() -> None:
    http = mounted(LOCAL_MODE)

    page = http.get("/tools/people/docs")
    assets = re.findall(r'(?:href|src)="([^"]*docs/[^"]*)"', page.text)
    statuses = [http.get(str(page.url.join(asset))).status_code for asset in assets]

    assert assets
    assert statuses == [200] * len(assets)


def test_health_check_routes_of_the_outer_application_still_work() -> None:
    async def own(_request: Request) -> JSONResponse:
        return JSONResponse("own")

    service = create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE)
    http = asgi_client(Starlette(routes=[Route("/health/live", own), Mount("/people", service)]))

    assert http.get("/health/live").json() == "own"
    assert http.get("/people/health/live").json() == {"message": "Alive"}
