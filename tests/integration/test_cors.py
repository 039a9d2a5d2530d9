"""Browsers call the service from pages of other origins: `http.cors_origins`."""

from collections.abc import Sequence
from itertools import chain

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from mlapi import Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.bootstrap import in_memory_access
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.application import create_app
from mlapi.entrypoints.wire.callers import ADMINS, ANYONE_IF_METRICS_ARE_OPEN
from mlapi.entrypoints.wire.operations import OPERATIONS
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE
from tests.contract.test_http import asgi_client

PAGE = "https://app.example.com"
TOKEN_MODE = AdminPolicy(admin_token=ADMIN_TOKEN, docs_open=True, metrics_open=True)
PATHS = {
    "/register-user": ["POST"],
    "/token": ["POST"],
    "/password-link": ["POST"],
    "/password-reset": ["POST"],
    "/token_status": ["GET"],
    "/token_status/some.token": ["GET"],
    "/users/me": ["GET"],
    "/users/me/password": ["PUT"],
    "/users/me/tokens": ["DELETE"],
    "/users/me/keys": ["GET", "POST"],
    "/users/me/keys/0123456789abcdef": ["DELETE"],
    "/users/me/usage": ["GET"],
}
CLOSED_PATHS = [
    *(
        "/users",
        "/users/1",
        "/users/1/usage",
        "/usage",
        "/users/1/password",
        "/users/1/tokens",
        "/users/1/keys",
        "/keys/0123456789abcdef",
    ),
    *("/toggle-user-permission/1/0", "/remove-user/1", "/audit", "/metrics", "/health/live", "/health/ready"),
    *("/console", "/console/log-in", "/docs", "/openapi.json", "/unknown", "/", "/token/", "/users/me/"),
    *("//token", "/users/me/password/x"),
]


def client(policy: AdminPolicy = TOKEN_MODE, origins: Sequence[str] = (PAGE,)) -> TestClient:
    users = Users(InMemoryUserRepository(), PlainCipher())
    http = asgi_client(create_app(users, policy, in_memory_access(users), cors_origins=origins))
    http.follow_redirects = False
    return http


def preflight(http: TestClient, path: str, method: str, origin: str = PAGE) -> httpx2.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return http.options(path, headers=headers)


def allowed_origin(response: httpx2.Response) -> str | None:
    origin: str | None = response.headers.get("access-control-allow-origin")
    return origin


@pytest.mark.parametrize(("path", "methods"), PATHS.items())
def test_preflight_names_the_methods_of_the_path(path: str, methods: list[str]) -> None:
    response = preflight(client(), path, methods[0])

    assert (response.status_code, response.content) == (204, b"")
    assert allowed_origin(response) == PAGE
    assert response.headers["access-control-allow-methods"] == ", ".join(methods)
    assert response.headers["access-control-allow-headers"] == "Authorization, Content-Type, X-API-Key"
    assert response.headers["access-control-max-age"] == "600"
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in response.headers


def test_operation_table_marks_the_tested_paths() -> None:
    marked = [operation for operation in OPERATIONS if operation.cross_origin]

    assert sorted(operation.method for operation in marked) == sorted(chain.from_iterable(PATHS.values()))
    assert not [operation for operation in marked if operation.callers in (ADMINS, ANYONE_IF_METRICS_ARE_OPEN)]


@pytest.mark.parametrize("path", CLOSED_PATHS)
@pytest.mark.parametrize("policy", [TOKEN_MODE, LOCAL_MODE], ids=["token", "local"])
def test_management_console_and_docs_stay_closed_to_pages(policy: AdminPolicy, path: str) -> None:
    http = client(policy, ["*"])
    as_admin = {"Origin": PAGE, "Authorization": f"Bearer {ADMIN_TOKEN}"}

    responses = [preflight(http, path, "GET"), *(http.request(m, path, headers=as_admin) for m in ("GET", "PUT"))]
    responses.append(preflight(http, path, "PATCH"))

    assert [allowed_origin(response) for response in responses] == [None] * 4
    assert responses[0].status_code not in {200, 204}


def test_page_registers_logs_in_and_manages_its_account() -> None:
    http = client()
    http.headers["Origin"] = PAGE
    body = {"username": "ada", "password": "x", "email": "ada@example.com"}

    registered = http.post("/register-user", json=body)
    logged_in = http.post("/token", json={"username": "ada", "password": "x"})
    own = http.get("/users/me", headers={"Authorization": f"Bearer {logged_in.json()['token']}"})

    for response, status in ((registered, 201), (logged_in, 200), (own, 200)):
        assert (response.status_code, allowed_origin(response)) == (status, PAGE)
        assert response.headers["access-control-expose-headers"] == "Retry-After, X-Request-Id"
        assert response.headers["vary"] == "Origin"


def test_errors_have_the_headers_too() -> None:
    origin = {"Origin": PAGE}
    http = client()
    unavailable = asgi_client(
        create_app(Users(UnavailableRepository(), PlainCipher()), TOKEN_MODE, cors_origins=[PAGE])
    )
    closed = client(AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False))
    body = {"username": "ada", "password": "x", "email": "ada@example.com"}

    responses = {
        400: http.post("/token", content=b"{", headers={**origin, "Content-Type": "application/json"}),
        401: http.get("/users/me", headers=origin),
        415: http.post("/token", content=b"x", headers=origin),
        422: http.post("/register-user", json={}, headers=origin),
        431: http.get("/users/me", headers={**origin, "X-Long": "x" * 20_000}),
        503: unavailable.post("/register-user", json=body, headers=origin),
    }
    ambiguous = http.get("/users/me", headers={**origin, "Transfer-Encoding": "chunked", "Content-Length": "1"})
    registration = closed.post("/register-user", json=body, headers=origin)

    assert {status: response.status_code for status, response in responses.items()} == {s: s for s in responses}
    assert (ambiguous.status_code, registration.status_code) == (400, 401)
    assert {allowed_origin(response) for response in (*responses.values(), ambiguous, registration)} == {PAGE}


@pytest.mark.parametrize(
    "origin", ["https://evil.example", f"{PAGE}:444", f"{PAGE}.evil.example", "http://app.example.com", "null"]
)
def test_other_origins_are_rejected(origin: str) -> None:
    http = client()

    before = preflight(http, "/token", "POST", origin)
    after = http.get("/users/me", headers={"Origin": origin})

    assert (before.status_code, after.status_code) == (403, 401)
    assert before.json()["message"].endswith("add the origin to http.cors_origins")
    assert [allowed_origin(response) for response in (before, after)] == [None, None]
    assert before.headers["vary"] == after.headers["vary"] == "Origin"


def test_asterisk_allows_every_origin() -> None:
    http = client(origins=["*"])

    responses = [preflight(http, "/token", "POST", "https://any.example"), http.get("/users/me")]

    assert [allowed_origin(response) for response in responses] == ["*", "*"]
    assert "vary" not in responses[0].headers


def test_responses_vary_by_origin() -> None:
    response = client().get("/users/me")

    assert (response.headers["vary"], allowed_origin(response)) == ("Origin", None)


def test_wrong_method_of_an_open_path_has_no_cors_headers() -> None:
    response = client().patch("/users/me", headers={"Origin": PAGE})

    assert (response.status_code, allowed_origin(response)) == (405, None)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": PAGE},
        {"Access-Control-Request-Method": "POST"},
        {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Transfer-Encoding": "chunked"},
        {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Content-Length": "5"},
    ],
    ids=str,
)
def test_other_options_requests_get_405(headers: dict[str, str]) -> None:
    assert client().options("/token", headers=headers).status_code == 405


def test_unset_setting_changes_nothing() -> None:
    http = client(origins=[])

    before = preflight(http, "/token", "POST")
    response = http.get("/users/me", headers={"Origin": PAGE})

    assert (before.status_code, response.status_code) == (405, 401)
    assert not [name for name in (*before.headers, *response.headers) if name.startswith("access-control")]


def test_pages_never_manage_users_in_local_mode() -> None:
    http = client(LOCAL_MODE, ["*"])
    body = {"username": "ada", "password": "x", "email": "ada@example.com"}
    user_id = http.post("/register-user", json=body, headers={"Origin": PAGE}).json()["user_id"]

    toggled = http.put(f"/toggle-user-permission/{user_id}/0", headers={"Origin": PAGE})
    closed = client(AdminPolicy(registration_open=False), ["*"]).post(
        "/register-user", json=body, headers={"Origin": PAGE}
    )
    entries = http.get("/audit").json()["entries"]

    assert (toggled.status_code, closed.status_code) == (403, 403)
    assert [entry["actor"] for entry in entries] == ["anyone"]


def test_paths_are_relative_to_the_mount_point() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())
    service = create_app(users, TOKEN_MODE, cors_origins=[PAGE])
    http = asgi_client(Starlette(routes=[Mount("/people", service)]))

    assert preflight(http, "/people/token", "POST").status_code == 204
    assert allowed_origin(preflight(http, "/people/users", "GET")) is None
