"""Request ids, security headers, metrics, log lines, and the audit trail over HTTP."""

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import prometheus_client.values
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Message

from mlapi import ConfigurationError, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.config import HttpSettings
from mlapi.domain.links import generate_link_token
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.logs import REQUEST_ID, JsonFormatter, log_to_stderr
from mlapi.testing.fakes import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE, content
from mlapi.testing.http_samples import ADA
from tests.asgi import Request
from tests.contract.test_http import BASE, asgi_client

SECURITY_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture
def users() -> Users:
    return Users(InMemoryUserRepository(), PlainCipher())


@pytest.fixture
def app(users: Users) -> Starlette:
    return create_app(users, LOCAL_MODE)


@pytest.fixture
def http(app: Starlette) -> TestClient:
    return asgi_client(app)


# --- headers and ids


def every_status(http: TestClient) -> Iterator[httpx2.Response]:
    yield http.post("/register-user", json=ADA)  # 201
    yield http.post("/register-user", json=ADA)  # 409
    yield http.put("/toggle-user-permission/1/0")  # 200
    yield http.put("/users/1/password", json={"password": "x"})  # 204
    yield http.post("/register-user", content=b"{", headers={"Content-Type": "application/json"})  # 400
    yield http.get("/token_status")  # 401
    yield http.post("/token", json={"username": "ada", "password": "x"})  # 403
    yield http.get("/unknown")  # 404
    yield http.get("/register-user")  # 405
    yield http.post("/register-user", content=b"x" * 20_000, headers={"Content-Type": "application/json"})  # 413
    yield http.post("/register-user", content=b"{}", headers={"Content-Type": "text/plain"})  # 415
    yield http.put("/toggle-user-permission/x/0")  # 422
    yield http.get("/audit", headers={"Origin": "http://elsewhere.example"})  # 403
    yield http.head("/health/live")  # 200


def test_every_response_has_a_unique_id_and_security_headers(http: TestClient) -> None:
    responses = list(every_status(http))

    assert {response.status_code for response in responses} == {
        200,
        201,
        204,
        400,
        401,
        403,
        404,
        405,
        409,
        413,
        415,
        422,
    }
    for response in responses:
        assert {name: response.headers.get_list(name) for name in SECURITY_HEADERS} == {
            name: [SECURITY_HEADERS[name]] for name in SECURITY_HEADERS
        }
    assert len({response.headers["x-request-id"] for response in responses}) == len(responses)


class BrokenRepository(UnavailableRepository):
    def get(self, user_id: object) -> Any:
        raise ZeroDivisionError


def test_5xx_responses_have_an_id_and_security_headers() -> None:
    app = create_app(Users(BrokenRepository(), PlainCipher()), LOCAL_MODE)
    http = TestClient(app, base_url=BASE, client=("127.0.0.1", 50000), raise_server_exceptions=False)

    server_error, unavailable = http.get("/users/1"), http.delete("/remove-user/1")

    assert (server_error.status_code, unavailable.status_code) == (500, 503)
    for response in (server_error, unavailable):
        assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert len(response.headers["x-request-id"]) == 16


def test_only_trusted_proxies_set_the_request_id(users: Users) -> None:
    proxies = HttpSettings(trusted_proxies=("127.0.0.1",)).trusted_networks
    trusting = create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), trusted_proxies=proxies)
    forwarded = {**ADMIN, "X-Request-Id": "proxy-7"}

    from_proxy = asgi_client(trusting).get("/users", headers=forwarded)
    malformed = asgi_client(trusting).get("/users", headers={**ADMIN, "X-Request-Id": "a b"})
    repeated = asgi_client(trusting).get("/users", headers=[*forwarded.items(), ("X-Request-Id", "proxy-8")])
    missing = asgi_client(trusting).get("/users", headers=ADMIN)
    from_another_address = TestClient(trusting, base_url=BASE, client=("127.0.0.2", 1)).get("/users", headers=forwarded)
    untrusting = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN))).get("/users", headers=forwarded)

    assert from_proxy.headers["x-request-id"] == "proxy-7"
    for response in (malformed, repeated, missing, from_another_address, untrusting):
        assert len(response.headers["x-request-id"]) == 16


# --- the audit trail


def entries(http: TestClient, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"/audit{query}").json()["entries"]
    return found


def test_audit_trail_has_actor_action_user_and_request(http: TestClient) -> None:
    responses = [
        http.post("/register-user", json=ADA),
        http.put("/toggle-user-permission/1/0"),
        http.delete("/remove-user/2"),
        http.delete("/remove-user/1"),
    ]

    audit_entries = entries(http)
    assert [
        (entry["actor"], entry["action"], entry["user_id"], entry["outcome"], entry["request_id"])
        for entry in reversed(audit_entries)
    ] == [
        (actor, action, user_id, outcome, response.headers["x-request-id"])
        for (actor, action, user_id, outcome), response in zip(
            [
                ("anyone", "register", 1, "done"),
                ("local", "disable", 1, "done"),
                ("local", "remove", 2, "user_not_found"),
                ("local", "remove", 1, "done"),
            ],
            responses,
            strict=True,
        )
    ]
    named = [entry["changes"] for entry in audit_entries if "ada" in json.dumps(entry)]
    assert named == [{"username": ["ada", None]}]  # only the entry about the removal keeps the name


def test_audit_trail_identifies_users_by_id(http: TestClient) -> None:
    http.post("/register-user", json=ADA)
    token = http.post("/token", json={"username": "ada", "password": ADA["password"]}).json()["token"]
    with_token = {"Authorization": f"Bearer {token}"}

    http.put("/users/me/password", json={"current": ADA["password"], "new": "analytical"}, headers=with_token)
    token = http.post("/token", json={"username": "ada", "password": "analytical"}).json()["token"]
    http.delete("/users/me/tokens", headers={"Authorization": f"Bearer {token}"})

    assert [(entry["actor"], entry["action"]) for entry in entries(http)[:2]] == [
        ("user 1", "end_tokens"),
        ("user 1", "set_password"),
    ]


def test_client_with_the_admin_token_is_recorded_as_admin(users: Users) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False)))
    http.headers.update(ADMIN)

    http.post("/register-user", json=ADA)
    key = http.post("/users/1/keys", json={"name": "laptop"}).json()["key_id"]
    http.delete(f"/keys/{key}")
    http.put("/users/1/password", json={"password": "x"})
    http.delete("/users/1/tokens")

    assert [(entry["actor"], entry["action"], entry["key_id"]) for entry in reversed(entries(http))] == [
        ("admin", "register", None),
        ("admin", "add_api_key", key),
        ("admin", "remove_api_key", key),
        ("admin", "set_password", None),
        ("admin", "end_tokens", None),
    ]


def test_audit_trail_is_paginated_and_filtered_by_user(http: TestClient) -> None:
    for name in ("ada", "bob", "eve"):
        http.post("/register-user", json={**ADA, "username": name})

    first = http.get("/audit?limit=2").json()
    rest = http.get(f"/audit?limit=2&after={first['next']}").json()

    assert [entry["user_id"] for entry in first["entries"] + rest["entries"]] == [3, 2, 1]
    assert rest["next"] is None
    assert [entry["user_id"] for entry in entries(http, "?user_id=2")] == [2]


@pytest.mark.parametrize("query", ["?limit=0", "?limit=501", "?after=x", "?user_id=-1", "?user_id=", "?frob=1"])
def test_invalid_audit_query_is_rejected(http: TestClient, query: str) -> None:
    assert http.get(f"/audit{query}").status_code == 422


def test_only_admins_can_read_the_audit_trail(users: Users) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN)))

    assert http.get("/audit").status_code == 401
    assert http.get("/audit", headers=ADMIN).status_code == 200


# --- metrics


def sample(metrics: str, name: str) -> list[str]:
    return [line for line in metrics.splitlines() if line.startswith(name)]


def test_metrics_count_requests_and_changes_but_omit_names(http: TestClient) -> None:
    list(every_status(http))

    response = http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert set(sample(response.text, "mlapi_changes_total")) == {
        'mlapi_changes_total{action="register",outcome="done"} 1.0',
        'mlapi_changes_total{action="register",outcome="user_exists"} 1.0',
        'mlapi_changes_total{action="disable",outcome="done"} 1.0',
        'mlapi_changes_total{action="set_password",outcome="done"} 1.0',
    }
    assert 'mlapi_requests_total{endpoint="register_user",method="POST",status="409"} 1.0' in response.text
    assert 'mlapi_requests_total{endpoint="none",method="GET",status="404"} 1.0' in response.text
    assert 'mlapi_request_seconds_count{endpoint="toggle_user_permission"} 2.0' in response.text
    assert "ada" not in response.text


def test_unknown_methods_and_paths_create_no_metrics(http: TestClient) -> None:
    for number in range(20):
        http.request(f"FROB{number}", f"/unknown-{number}")

    metrics = http.get("/metrics").text

    assert sample(metrics, "mlapi_requests_total") == [
        'mlapi_requests_total{endpoint="none",method="other",status="403"} 20.0'
    ] or sample(metrics, "mlapi_requests_total") == [
        'mlapi_requests_total{endpoint="none",method="other",status="404"} 20.0'
    ]


def test_metrics_distinguish_the_methods_of_a_path(http: TestClient) -> None:
    http.get("/users/1/keys")
    http.delete("/users/1/keys")

    metrics = http.get("/metrics").text
    assert 'endpoint="api_keys",method="GET",status="404"' in metrics
    assert 'endpoint="ByMethod",method="DELETE",status="405"' in metrics


def test_metrics_need_admin_access_unless_they_are_open(users: Users) -> None:
    closed = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN)))
    open_to_all = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN, metrics_open=True)))

    assert [http.get("/metrics").status_code for http in (closed, open_to_all)] == [401, 200]
    assert closed.get("/metrics", headers=ADMIN).status_code == 200


@pytest.fixture
def metrics_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to which prometheus_client writes metrics, as if it had been imported after setting the variable."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MultiProcessValue())  # type: ignore[no-untyped-call]  # of prometheus_client
    return tmp_path


def test_multiprocess_metrics_are_served(metrics_folder: Path, users: Users) -> None:
    http = asgi_client(create_app(users, LOCAL_MODE))  # tests/e2e checks the totals of all workers

    http.get("/health/live")

    lines = http.get("/metrics").text.splitlines()
    assert 'mlapi_requests_total{endpoint="live",method="GET",status="200"} 1.0' in lines


def test_unreadable_metrics_files_are_skipped(metrics_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (metrics_folder / "counter_1.db").write_bytes(b"")  # created by another process, but still empty

    assert b"mlapi_info" in Metrics().exposition()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"metrics file {metrics_folder}/counter_1.db is unreadable and was skipped"
    ]


@pytest.mark.parametrize("shares_files", [True, False])
def test_metrics_of_the_host_application_are_left_out(
    metrics_folder: Path, monkeypatch: pytest.MonkeyPatch, shares_files: bool
) -> None:
    if not shares_files:  # prometheus_client was imported before the variable was set, so it writes no files
        monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MutexValue)
    registry = prometheus_client.CollectorRegistry()
    for kind in (prometheus_client.Counter, prometheus_client.Histogram, prometheus_client.Gauge):
        kind(f"host_{kind.__name__.lower()}", "Of the host.", ["customer"], registry=registry).labels("acme")
    metrics = Metrics(lambda: {"admitted": 2})
    metrics.count_request("live", "GET", 200, 0.01)
    metrics.count_rejected_registration()

    text = metrics.exposition().decode()

    assert any(metrics_folder.iterdir()) == shares_files
    assert "acme" not in text
    assert "host_" not in text
    assert 'mlapi_requests_total{endpoint="live",method="GET",status="200"} 1.0' in text.splitlines()
    names = {name for name in re.findall(r"^# TYPE (\w+)", text, re.MULTILINE) if not name.endswith("_created")}
    assert names - {"mlapi_mails_total"} == {  # the files contain no counter that has counted nothing
        *("mlapi_changes_total", "mlapi_guard_decisions_total", "mlapi_info"),
        *("mlapi_request_seconds", "mlapi_requests_total"),
    }
    assert 'mlapi_guard_decisions_total{decision="admitted"} 2.0' in text.splitlines()


def test_metrics_count_the_decisions_of_the_guard(users: Users) -> None:
    http = asgi_client(create_app(users, LOCAL_MODE))
    user = users.register(username="ada", password="difference engine", email="ada@example.com")
    _, key = users.add_api_key(user_id=user.id, name="job")

    for secret in (key, key, f"{key[:-1]}x", key):
        http.get("/verify", headers={"x-api-key": secret})
    users.set_enabled(user_id=user.id, enabled=False)
    http.get("/verify", headers={"x-api-key": key})
    http.get("/users/me", headers={"x-api-key": key})

    assert set(sample(http.get("/metrics").text, "mlapi_guard_decisions_total")) == {
        'mlapi_guard_decisions_total{decision="admitted"} 3.0',
        'mlapi_guard_decisions_total{decision="invalid_token"} 1.0',
        'mlapi_guard_decisions_total{decision="user_disabled"} 1.0',
    }


def test_unwritable_metrics_folder_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/no/such/folder")

    with pytest.raises(ConfigurationError, match="PROMETHEUS_MULTIPROC_DIR is not a folder"):
        Metrics()


# --- clients that disconnect


class UvicornCycle:
    """Sends messages like uvicorn, which discards them if the client has disconnected."""

    def __init__(self, error: Exception | None = None, *, disconnected: bool = False) -> None:
        self.disconnected = disconnected
        self._error = error

    async def send(self, _message: Message) -> None:
        if self._error is not None:
            raise self._error


async def receive_nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def call_health_check(app: Starlette, cycle: UvicornCycle) -> None:
    scope = Request("GET", "/health/live", (), b"").to_scope(app)
    asyncio.run(app(scope, receive_nothing, cycle.send))


@pytest.mark.parametrize(
    "cycle",
    [
        UvicornCycle(disconnected=True),
        UvicornCycle(ConnectionResetError()),
        UvicornCycle(RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")),
    ],
    ids=["uvicorn", "ASGI", "uvloop"],
)
def test_unread_response_counts_as_499(
    app: Starlette, http: TestClient, cycle: UvicornCycle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "uvicorn.access"):
        call_health_check(app, cycle)

    assert sample(http.get("/metrics").text, "mlapi_requests_total") == [
        'mlapi_requests_total{endpoint="live",method="GET",status="499"} 1.0'
    ]
    assert caplog.messages == ['127.0.0.1:50000 - "GET /health/live HTTP/1.1" 499']


def test_log_of_a_rejected_websocket_contains_no_link(app: Starlette) -> None:
    token = generate_link_token()
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": f"/links/{token}",
        "raw_path": b"/links/x",
        "query_string": b"token=x",
    }
    scope |= {"headers": [], "root_path": "", "subprotocols": []}

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(_message: Message) -> None:
        pass

    asyncio.run(app(scope, receive, send))

    assert (scope["path"], scope["query_string"], "raw_path" in scope) == ("/links/redacted", b"", False)


def test_other_server_errors_are_not_hidden(app: Starlette, http: TestClient) -> None:
    with pytest.raises(RuntimeError, match="Content-Length"):
        call_health_check(app, UvicornCycle(RuntimeError("Response content longer than Content-Length")))

    assert 'status="500"' in http.get("/metrics").text


# --- log lines


def record(message: str, *values: object, name: str = "mlapi", **fields: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "file.py", 1, message, values, fields.get("exc_info"))


def test_json_line_has_time_level_logger_and_message() -> None:
    line = json.loads(JsonFormatter().format(record("%s users", 7)))

    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "logger": "mlapi", "message": "7 users"}


def test_json_line_has_the_request_id_and_the_exception() -> None:
    error = ZeroDivisionError()
    token = REQUEST_ID.set("request-7")
    text = JsonFormatter().format(record("a\nb", exc_info=(type(error), error, None)))
    REQUEST_ID.reset(token)

    line = json.loads(text)
    assert "\n" not in text
    assert (line["message"], line["request_id"]) == ("a\nb", "request-7")
    assert line["exception"].endswith("ZeroDivisionError")


def test_json_access_log_line_has_separate_fields() -> None:
    access = record('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/users", "1.1", 200, name="uvicorn.access")

    line = json.loads(JsonFormatter().format(access))

    assert (line["client"], line["method"], line["path"], line["status"]) == ("127.0.0.1:5", "GET", "/users", 200)
    assert json.loads(JsonFormatter().format(record("another", name="uvicorn.access")))["message"] == "another"


@pytest.fixture
def loggers() -> Iterator[dict[str, logging.Handler]]:
    """Replace the handlers of the uvicorn and mlapi loggers, and restore them afterwards."""
    names = ("mlapi", "uvicorn", "uvicorn.access")
    original = {name: logging.getLogger(name).handlers[:] for name in names}
    handlers: dict[str, logging.Handler] = {name: logging.StreamHandler() for name in names}
    for name, handler in handlers.items():
        logging.getLogger(name).handlers[:] = [handler]
    yield handlers
    for name, original_handlers in original.items():
        logging.getLogger(name).handlers[:] = original_handlers


def test_json_format_also_applies_to_uvicorn(loggers: dict[str, logging.Handler]) -> None:
    log_to_stderr("text")
    as_text = {name: type(handler.formatter).__name__ for name, handler in loggers.items()}
    log_to_stderr("json")
    as_json = {name: type(handler.formatter).__name__ for name, handler in loggers.items()}

    assert as_text == {"mlapi": "TextFormatter", "uvicorn": "NoneType", "uvicorn.access": "NoneType"}
    assert as_json == dict.fromkeys(loggers, "JsonFormatter")


def test_text_line_ends_with_the_request_id(loggers: dict[str, logging.Handler]) -> None:
    log_to_stderr("text")
    formatter = loggers["mlapi"].formatter
    assert formatter is not None

    outside = formatter.format(record("unavailable"))
    token = REQUEST_ID.set("request-7")
    inside = formatter.format(record("unavailable"))
    REQUEST_ID.reset(token)

    assert (outside, inside) == ("WARNING:     unavailable", "WARNING:     unavailable [request-7]")


def test_request_id_is_available_while_logging(caplog: pytest.LogCaptureFixture) -> None:
    ids: list[str | None] = []

    def remember_id(_record: logging.LogRecord) -> bool:
        ids.append(REQUEST_ID.get())
        return True

    caplog.handler.addFilter(remember_id)
    http = asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()), LOCAL_MODE))

    with caplog.at_level(logging.WARNING, "mlapi"):
        response = http.delete("/remove-user/1")

    assert content(response)[0] == 503
    assert ids == [response.headers["x-request-id"]]
