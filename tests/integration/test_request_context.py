"""What is the same for every request: an id, strict headers, counts and log lines; and the audit trail over HTTP."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mlapi import ConfigurationError, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.config import HttpSettings
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http.metrics import Metrics
from mlapi.entrypoints.logs import REQUEST_ID, JsonFormatter, log_to_stderr
from mlapi.testing.fakes import UnavailableRepository
from mlapi.testing.http import ADA, ADMIN_TOKEN, content
from tests.contract.test_http import BASE, asgi_client

STRICT = {
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
    return create_app(users)


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
    yield http.get("/nowhere")  # 404
    yield http.get("/register-user")  # 405
    yield http.post("/register-user", content=b"x" * 20_000, headers={"Content-Type": "application/json"})  # 413
    yield http.post("/register-user", content=b"{}", headers={"Content-Type": "text/plain"})  # 415
    yield http.put("/toggle-user-permission/x/0")  # 422
    yield http.get("/audit", headers={"Origin": "http://elsewhere.example"})  # 403
    yield http.head("/health/live")  # 200


def test_every_answer_has_an_id_of_its_own_and_strict_headers(http: TestClient) -> None:
    answers = list(every_status(http))

    assert {answer.status_code for answer in answers} == {200, 201, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422}
    for answer in answers:
        assert {name: answer.headers.get_list(name) for name in STRICT} == {name: [STRICT[name]] for name in STRICT}
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


class BrokenRepository(UnavailableRepository):
    def get(self, user_id: object) -> Any:
        raise ZeroDivisionError


def test_so_has_an_answer_about_a_fault_of_ours_and_one_of_a_database_that_is_away() -> None:
    app = create_app(Users(BrokenRepository(), PlainCipher()))
    http = TestClient(app, base_url=BASE, client=("127.0.0.1", 50000), raise_server_exceptions=False)

    fault, away = http.get("/users/1"), http.delete("/remove-user/1")

    assert (fault.status_code, away.status_code) == (500, 503)
    for answer in (fault, away):
        assert {name: answer.headers.get(name) for name in STRICT} == STRICT
        assert len(answer.headers["x-request-id"]) == 16


def test_an_id_is_taken_from_a_trusted_proxy_and_nobody_else(users: Users) -> None:
    proxies = HttpSettings(trusted_proxies=("127.0.0.1",)).trusted_networks
    trusting = create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN), trusted_proxies=proxies)
    given = {**ADMIN, "X-Request-Id": "proxy-7"}

    by_proxy = asgi_client(trusting).get("/users", headers=given)
    malformed = asgi_client(trusting).get("/users", headers={**ADMIN, "X-Request-Id": "a b"})
    twice = asgi_client(trusting).get("/users", headers=[*given.items(), ("X-Request-Id", "proxy-8")])
    none = asgi_client(trusting).get("/users", headers=ADMIN)
    by_another = TestClient(trusting, base_url=BASE, client=("127.0.0.2", 1)).get("/users", headers=given)
    untrusting = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN))).get("/users", headers=given)

    assert by_proxy.headers["x-request-id"] == "proxy-7"
    for answer in (malformed, twice, none, by_another, untrusting):
        assert len(answer.headers["x-request-id"]) == 16


# --- the audit trail


def entries(http: TestClient, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get(f"/audit{query}").json()["entries"]
    return found


def test_the_audit_trail_tells_who_did_what_to_whom_in_which_request(http: TestClient) -> None:
    answers = [
        http.post("/register-user", json=ADA),
        http.put("/toggle-user-permission/1/0"),
        http.post("/register-user", json=ADA),
        http.delete("/remove-user/2"),
        http.delete("/remove-user/1"),
    ]

    told = entries(http)
    assert [
        (entry["actor"], entry["action"], entry["user_id"], entry["outcome"], entry["request_id"])
        for entry in reversed(told)
    ] == [
        (actor, action, user_id, outcome, answer.headers["x-request-id"])
        for (actor, action, user_id, outcome), answer in zip(
            [
                ("anyone", "register", 1, "done"),
                ("local", "disable", 1, "done"),
                ("anyone", "register", 1, "user_exists"),
                ("local", "remove", 2, "user_not_found"),
                ("local", "remove", 1, "done"),
            ],
            answers,
            strict=True,
        )
    ]
    assert "ada" not in json.dumps(told)


def test_a_user_who_changes_his_own_is_told_by_his_id(http: TestClient) -> None:
    http.post("/register-user", json=ADA)
    token = http.post("/token", json={"username": "ada", "password": ADA["password"]}).json()["token"]
    his = {"Authorization": f"Bearer {token}"}

    http.put("/users/me/password", json={"current": ADA["password"], "new": "analytical"}, headers=his)
    token = http.post("/token", json={"username": "ada", "password": "analytical"}).json()["token"]
    http.delete("/users/me/tokens", headers={"Authorization": f"Bearer {token}"})

    assert [(entry["actor"], entry["action"]) for entry in entries(http)[:2]] == [
        ("user 1", "end_tokens"),
        ("user 1", "set_password"),
    ]


def test_a_manager_with_a_token_is_the_admin_and_closed_registration_is_his(users: Users) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN, registration_open=False)))
    http.headers |= ADMIN

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


def test_the_audit_trail_comes_in_pages_and_about_one_user(http: TestClient) -> None:
    for name in ("ada", "bob", "eve"):
        http.post("/register-user", json={**ADA, "username": name})

    first = http.get("/audit?limit=2").json()
    rest = http.get(f"/audit?limit=2&after={first['next']}").json()

    assert [entry["user_id"] for entry in first["entries"] + rest["entries"]] == [3, 2, 1]
    assert rest["next"] is None
    assert [entry["user_id"] for entry in entries(http, "?user_id=2")] == [2]


@pytest.mark.parametrize("query", ["?limit=0", "?limit=501", "?after=x", "?user_id=-1", "?user_id=", "?frob=1"])
def test_a_wrong_query_of_the_audit_trail_is_told(http: TestClient, query: str) -> None:
    assert http.get(f"/audit{query}").status_code == 422


def test_the_audit_trail_is_for_managers(users: Users) -> None:
    http = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN)))

    assert http.get("/audit").status_code == 401
    assert http.get("/audit", headers=ADMIN).status_code == 200


# --- metrics


def sample(metrics: str, name: str) -> list[str]:
    return [line for line in metrics.splitlines() if line.startswith(name)]


def test_requests_and_changes_are_counted_without_a_name(http: TestClient) -> None:
    list(every_status(http))

    answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert set(sample(answer.text, "mlapi_changes_total")) == {
        'mlapi_changes_total{action="register",outcome="done"} 1.0',
        'mlapi_changes_total{action="register",outcome="user_exists"} 1.0',
        'mlapi_changes_total{action="disable",outcome="done"} 1.0',
        'mlapi_changes_total{action="set_password",outcome="done"} 1.0',
    }
    assert 'mlapi_requests_total{endpoint="register_user",method="POST",status="409"} 1.0' in answer.text
    assert 'mlapi_requests_total{endpoint="none",method="GET",status="404"} 1.0' in answer.text
    assert 'mlapi_request_seconds_count{endpoint="toggle_user_permission"} 2.0' in answer.text
    assert "ada" not in answer.text


def test_what_strangers_choose_makes_no_new_series(http: TestClient) -> None:
    for number in range(20):
        http.request(f"FROB{number}", f"/nowhere-{number}")

    metrics = http.get("/metrics").text

    assert sample(metrics, "mlapi_requests_total") == [
        'mlapi_requests_total{endpoint="none",method="other",status="403"} 20.0'
    ] or sample(metrics, "mlapi_requests_total") == [
        'mlapi_requests_total{endpoint="none",method="other",status="404"} 20.0'
    ]


def test_one_path_with_several_methods_is_counted_by_what_answers(http: TestClient) -> None:
    http.get("/users/1/keys")

    assert 'endpoint="api_keys",method="GET",status="404"' in http.get("/metrics").text


def test_metrics_are_for_managers_unless_they_are_open(users: Users) -> None:
    closed = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN)))
    opened = asgi_client(create_app(users, AdminPolicy(admin_token=ADMIN_TOKEN, metrics_open=True)))

    assert [http.get("/metrics").status_code for http in (closed, opened)] == [401, 200]
    assert closed.get("/metrics", headers=ADMIN).status_code == 200


def test_several_processes_answer_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: Users) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))  # that they add up, a test of the real server shows
    http = asgi_client(create_app(users))

    http.get("/health/live")

    assert http.get("/metrics").status_code == 200


def test_a_folder_for_counts_that_cannot_be_written_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/no/such/folder")

    with pytest.raises(ConfigurationError, match="PROMETHEUS_MULTIPROC_DIR is not a folder"):
        Metrics()


# --- log lines


def record(message: str, *values: object, name: str = "mlapi", **fields: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "file.py", 1, message, values, fields.get("exc_info"))


def test_a_line_of_json_says_when_how_bad_who_and_what() -> None:
    line = json.loads(JsonFormatter().format(record("%s users", 7)))

    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "warning", "logger": "mlapi", "message": "7 users"}


def test_a_line_of_json_is_one_line_with_the_request_and_the_exception() -> None:
    failure = ZeroDivisionError()
    token = REQUEST_ID.set("request-7")
    text = JsonFormatter().format(record("a\nb", exc_info=(type(failure), failure, None)))
    REQUEST_ID.reset(token)

    line = json.loads(text)
    assert "\n" not in text
    assert (line["message"], line["request_id"]) == ("a\nb", "request-7")
    assert line["exception"].endswith("ZeroDivisionError")


def test_the_servers_access_log_is_told_apart() -> None:
    access = record('%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/users", "1.1", 200, name="uvicorn.access")

    line = json.loads(JsonFormatter().format(access))

    assert (line["client"], line["method"], line["path"], line["status"]) == ("127.0.0.1:5", "GET", "/users", 200)
    assert json.loads(JsonFormatter().format(record("another", name="uvicorn.access")))["message"] == "another"


@pytest.fixture
def loggers() -> Iterator[dict[str, logging.Handler]]:
    """Handlers that uvicorn's loggers and ours have, and no others, put back afterwards."""
    names = ("mlapi", "uvicorn", "uvicorn.access")
    before = {name: logging.getLogger(name).handlers[:] for name in names}
    handlers: dict[str, logging.Handler] = {name: logging.StreamHandler() for name in names}
    for name, handler in handlers.items():
        logging.getLogger(name).handlers[:] = [handler]
    yield handlers
    for name, kept in before.items():
        logging.getLogger(name).handlers[:] = kept


def test_json_is_for_the_servers_lines_too_and_text_for_ours_alone(loggers: dict[str, logging.Handler]) -> None:
    log_to_stderr("text")
    as_text = {name: type(handler.formatter).__name__ for name, handler in loggers.items()}
    log_to_stderr("json")
    as_json = {name: type(handler.formatter).__name__ for name, handler in loggers.items()}

    assert as_text == {"mlapi": "TextFormatter", "uvicorn": "NoneType", "uvicorn.access": "NoneType"}
    assert as_json == dict.fromkeys(loggers, "JsonFormatter")


def test_a_line_of_text_ends_with_the_request(loggers: dict[str, logging.Handler]) -> None:
    log_to_stderr("text")
    formatter = loggers["mlapi"].formatter
    assert formatter is not None

    outside = formatter.format(record("away"))
    token = REQUEST_ID.set("request-7")
    inside = formatter.format(record("away"))
    REQUEST_ID.reset(token)

    assert (outside, inside) == ("WARNING:     away", "WARNING:     away [request-7]")


def test_a_log_line_of_a_request_carries_its_id(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str | None] = []

    def see(_record: logging.LogRecord) -> bool:
        seen.append(REQUEST_ID.get())
        return True

    caplog.handler.addFilter(see)
    http = asgi_client(create_app(Users(UnavailableRepository(), PlainCipher())))

    with caplog.at_level(logging.WARNING, "mlapi"):
        answer = http.delete("/remove-user/1")

    assert content(answer)[0] == 503
    assert seen == [answer.headers["x-request-id"]]
