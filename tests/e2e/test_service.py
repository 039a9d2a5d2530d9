"""The service as its users see it: a process with a port and a working directory."""

import json
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import URL, text
from starlette.testclient import TestClient

from mlapi.bootstrap import open_database, open_service
from mlapi.config import load_settings
from mlapi.domain.errors import ConfigurationError
from mlapi.entrypoints.http import create_app
from tests.conftest import KEY, OLDER_KEY, SALT
from tests.e2e.server import Server

ADA: dict[str, Any] = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
CANARY = "c4n4ry-p4ssw0rd"
ADMIN_TOKEN = "an-admin-token-for-tests"
SECRETS = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}


@pytest.fixture
def environ(url: URL) -> dict[str, str]:
    return {"MLAPI_DATABASE__URL": url.render_as_string(hide_password=False)}


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server in the test's folder. All servers are stopped after the test."""
    started: list[Server] = []

    def start(environ: dict[str, str] | None = None, *options: str) -> Server:
        started.append(Server(tmp_path, environ, *options))
        return started[-1].start()

    yield start
    for server in started:
        server.stop(signal.SIGKILL if server.is_running else signal.SIGTERM)


StartServer = Callable[..., Server]


def status_and_body(response: requests.Response) -> tuple[int, object]:
    return response.status_code, response.json()


def register(server: Server, username: str = "ada", **more: str) -> requests.Response:
    return requests.post(f"{server.base}/register-user", json={**ADA, "username": username, **more}, timeout=15)


# --- the three endpoints


def test_three_endpoints_work_without_configuration(start_server: StartServer, tmp_path: Path) -> None:
    base = start_server().base
    body = {"username": "test", "password": "test", "email": "test@testmail.com"}

    created = requests.post(f"{base}/register-user", json=body, timeout=10)
    again = requests.post(f"{base}/register-user", json=body, timeout=10)
    first = created.json()["user_id"]
    removed = requests.delete(f"{base}/remove-user/{first}", timeout=10)
    new = requests.post(f"{base}/register-user", json=body, timeout=10)
    second = new.json()["user_id"]
    login = requests.post(f"{base}/token", json=body, timeout=10)  # with the e-mail address, as in the tutorial
    bare = {"Authorization": login.json()["token"]}  # without a scheme
    checked = [requests.get(f"{base}/{path}", headers=bare, timeout=10) for path in ("token_status", "users/me")]
    toggled = requests.put(f"{base}/toggle-user-permission/{second}/0", timeout=10)

    assert [response.status_code for response in (login, *checked)] == [200, 200, 200]
    assert status_and_body(created) == (201, {"message": "User created successfully", "user_id": first})
    assert status_and_body(again) == (409, {"message": "User already exists", "user_id": first})
    assert status_and_body(removed) == (200, {"message": "User deleted successfully"})
    assert status_and_body(new) == (201, {"message": "User created successfully", "user_id": second})
    assert second != first
    assert status_and_body(toggled) == (200, {"message": "User permission updated successfully", "user_id": second})
    table = read_table({"MLAPI_DATABASE__URL": f"sqlite:///{tmp_path}/mlapi.db"})
    assert list(table.columns[:7]) == [
        "id", "username", "password", "email", "enabled", "created_datetime", "updated_datetime",
    ]  # fmt: skip
    (row,) = table.to_dict("records")
    assert (row["id"], row["username"], row["email"], bool(row["enabled"])) == (
        second, "test", "test@testmail.com", False,
    )  # fmt: skip
    assert row["password"].startswith("gAAAA")
    assert row["updated_datetime"] > row["created_datetime"]


def read_table(environ: dict[str, str]) -> Any:
    """Read the users table with pandas and mlapi's engine."""
    import pandas as pd  # noqa: PLC0415 - only the worker that runs these tests spends time on this import

    database = open_database(load_settings(environ=environ))
    try:
        return pd.read_sql_table("users", database.engine)
    finally:
        database.close()


def read_enabled(environ: dict[str, str]) -> dict[int, bool]:
    """Read the state of every user from the database."""
    database = open_database(load_settings(environ=environ))
    try:
        with database.reading() as connection:
            return {
                user_id: bool(enabled) for user_id, enabled in connection.execute(text("SELECT id, enabled FROM users"))
            }
    finally:
        database.close()


def test_pandas_reads_the_users_table(environ: dict[str, str]) -> None:
    with open_service(load_settings(environ={**environ, **SECRETS})) as service:
        service.users.register(**ADA)

    table = read_table(environ)

    assert table["username"].tolist() == ["ada"]
    assert table["created_datetime"].dtype.kind == "M"  # a time


def test_service_runs_with_the_shipped_configuration(start_server: StartServer, tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    (tmp_path / "config.yml").write_text((repository / "config.yml").read_text("utf-8"), "utf-8")

    assert register(start_server()).status_code == 201


def test_users_survive_a_server_restart(start_server: StartServer, environ: dict[str, str]) -> None:
    server = start_server(environ)
    user_id = register(server).json()["user_id"]
    server.stop()

    again = register(start_server(environ))

    assert status_and_body(again) == (409, {"message": "User already exists", "user_id": user_id})


# --- several workers


def test_clients_registering_one_name_at_once_create_one_user(
    start_server: StartServer, environ: dict[str, str]
) -> None:
    server = start_server({**environ, "MLAPI_PASSWORDS__SCHEME": "fernet"}, "--workers", "2")

    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(lambda _: register(server), range(32)))

    created = [response for response in responses if response.status_code == 201]
    assert len(created) == 1
    user_id = created[0].json()["user_id"]
    assert {json.dumps(status_and_body(response)) for response in responses if response.status_code != 201} == {
        json.dumps((409, {"message": "User already exists", "user_id": user_id}))
    }
    assert read_enabled(environ) == {user_id: True}


def test_workers_starting_together_create_one_secrets_file(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(None, "--workers", "2")

    statuses = [register(server, f"user{number}").status_code for number in range(8)]

    assert statuses == [201] * 8
    assert server.log.count("generated a key and a salt") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("secrets", ".secrets"))) == [
        "secrets.yml"
    ]


# --- admin access over real connections


def request_bytes(method: str, path: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", *headers, "Connection: close", "", ""]).encode()


FORGED_HEADERS = {
    "foreign host": ["Host: example.com"],
    "two equal hosts": ["Host: localhost", "Host: localhost"],
    "a host and an empty host": ["Host: localhost", "Host:"],
    "suffixed host": ["Host: localhost.example.com"],
    "user in host": ["Host: localhost@example.com"],
    "origin": ["Host: localhost", "Origin: http://localhost"],
    "null origin": ["Host: localhost", "Origin: null"],
    "empty origin": ["Host: localhost", "Origin:"],
    "cross-site": ["Host: localhost", "Sec-Fetch-Site: cross-site"],
    "same-site": ["Host: localhost", "Sec-Fetch-Site: same-site"],
    "forwarded": ["Host: localhost", "Forwarded: for=127.0.0.1"],
    "forwarded for": ["Host: localhost", "X-Forwarded-For: 127.0.0.1"],
    "empty forwarded for": ["Host: localhost", "X-Forwarded-For:"],
    "forwarded proto": ["Host: localhost", "X-Forwarded-Proto: http"],
    "real ip": ["Host: localhost", "X-Real-IP: ::1"],
    "via": ["Host: localhost", "Via: 1.1 a"],
    "a token although none is configured": ["Host: example.com", "Authorization: Bearer x"],
}


@pytest.fixture(scope="module")
def local_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("local"), None, "--host", "0.0.0.0") as server:
        assert register(server).status_code == 201
        yield server


@pytest.mark.parametrize("headers", FORGED_HEADERS.values(), ids=FORGED_HEADERS.keys())
@pytest.mark.parametrize("method_and_path", ["DELETE /remove-user/1", "PUT /toggle-user-permission/1/0"])
def test_forged_local_request_changes_nothing(local_server: Server, headers: list[str], method_and_path: str) -> None:
    received = local_server.send_raw(request_bytes(*method_and_path.split(), *headers))

    assert received.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 "))
    assert read_enabled({"MLAPI_DATABASE__URL": f"sqlite:///{local_server.folder}/mlapi.db"}) == {1: True}


def test_http_1_0_request_gets_no_local_admin_access(local_server: Server) -> None:
    received = local_server.send_raw(request_bytes("DELETE", "/remove-user/1", "Host: localhost", version="1.0"))

    assert received.startswith((b"HTTP/1.1 403 ", b"HTTP/1.0 403 "))


def test_non_loopback_connection_gets_no_local_admin_access(local_server: Server) -> None:
    address = find_other_address()
    if address is None:
        pytest.fail("this machine has only loopback addresses: the rule cannot be tested with a real connection")

    received = local_server.send_raw(request_bytes("DELETE", "/remove-user/1", "Host: localhost"), host=address)

    assert received.startswith(b"HTTP/1.1 403 ")


def find_other_address() -> str | None:
    """Return an address of this machine other than loopback. Connecting a datagram socket sends no packets."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an unused address for documentation
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


def test_production_accepts_only_the_admin_token(start_server: StartServer, sqlite_url: URL) -> None:
    environ = {
        **SECRETS,
        "MLAPI_PROFILE": "production",
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_REGISTRATION__OPEN": "false",
    }
    server = start_server(environ)
    bearer = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    rejected = register(server)
    created = requests.post(f"{server.base}/register-user", json=ADA, headers=bearer, timeout=10)
    unauthorized = requests.delete(f"{server.base}/remove-user/1", timeout=10)
    twice = server.send_raw(
        request_bytes("DELETE", "/remove-user/1", "Host: x", *[f"Authorization: Bearer {ADMIN_TOKEN}"] * 2)
    )
    removed = requests.delete(f"{server.base}/remove-user/1", headers=bearer, timeout=10)

    assert [rejected.status_code, created.status_code, unauthorized.status_code] == [401, 201, 401]
    assert twice.startswith(b"HTTP/1.1 401 ")
    assert status_and_body(removed) == (200, {"message": "User deleted successfully"})
    assert "management: token mode" in server.log


# --- startup failures: one line, exit code 3


def run_failing_startup(folder: Path, environ: dict[str, str], *options: str) -> str:
    server = Server(folder, environ, *options)

    assert server.run_until_exit() == 3
    assert "Traceback" not in server.log
    (line,) = [line for line in server.log.splitlines() if "mlapi: " in line]
    return line


PRODUCTION = {"MLAPI_PROFILE": "production", **SECRETS}
STARTUP_FAILURES: dict[str, tuple[dict[str, str], str]] = {
    "unknown key": ({"MLAPI_DATABASE__ULR": "x"}, "database.ulr is not a setting; did you mean MLAPI_DATABASE__URL?"),
    "bad URL": ({"MLAPI_DATABASE__URL": f"postgres//{CANARY}@"}, "database.url is not a valid URL"),
    "bad port": ({"MLAPI_DATABASE__URL": f"postgresql://u:{CANARY}@h:x/d"}, "database.url is not a valid URL"),
    "unsupported database": ({"MLAPI_DATABASE__URL": f"oracle://u:{CANARY}@h/d"}, "unsupported scheme oracle"),
    "missing folder": ({"MLAPI_DATABASE__URL": "sqlite:////no/such/mlapi.db"}, "must be a file in an existing folder"),
    "short key": ({**SECRETS, "MLAPI_SECRETS__KEY": CANARY}, "secrets.key is not a Fernet key"),
    "missing key file": ({"MLAPI_SECRETS__KEY_FILE": "/no/such/file"}, "cannot be read"),
    "missing salt": ({"MLAPI_SECRETS__KEY": KEY}, "secrets.salt is missing"),
    "production without secrets": ({"MLAPI_PROFILE": "production"}, "secrets.key is missing"),
    "production without admin token": (PRODUCTION, "secrets.admin_token is missing"),
    "short admin token": ({**PRODUCTION, "MLAPI_SECRETS__ADMIN_TOKEN": "c4n4ry"}, "at least 16 characters"),
    "unknown profile": ({"MLAPI_PROFILE": "prod"}, "profile must be "),
    "missing configuration file": ({"MLAPI_CONFIG": "/no/such/config.yml"}, "cannot be read"),
}


IN_A_PROCESS = {"unknown key", "bad port", "production without admin token"}
"""Failures while reading the settings, opening the database and checking the secrets."""


@pytest.mark.parametrize("failure", STARTUP_FAILURES)
@pytest.mark.usefixtures("restore_process_state")
def test_startup_with_invalid_settings_logs_one_line(
    tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ, reason = STARTUP_FAILURES[failure]
    monkeypatch.chdir(tmp_path)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    if failure in IN_A_PROCESS:
        line = run_failing_startup(tmp_path, environ)
    else:
        with pytest.raises(ConfigurationError) as error_info, TestClient(create_app()):
            pass
        (line,) = str(error_info.value).splitlines()

    assert reason in line
    assert "c4n4ry" not in line
    assert not (tmp_path / "mlapi.db").exists()


def test_startup_fails_if_others_can_read_the_secrets_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_service(load_settings(environ={})):
        pass  # creates the file
    (tmp_path / "secrets.yml").chmod(0o644)

    line = run_failing_startup(tmp_path, {})

    file = tmp_path / "secrets.yml"
    assert line.endswith(
        f"{file} holds secrets, but other accounts can access it: run `chmod 600 {file}`"
        "; if that has no effect, move it to a file system that supports permissions"
    )


def test_server_refuses_to_start_with_a_different_key(tmp_path: Path, environ: dict[str, str]) -> None:
    with open_service(load_settings(environ={**environ, **SECRETS})):
        pass  # stores which key the database belongs to

    line = run_failing_startup(tmp_path, {**environ, **SECRETS, "MLAPI_SECRETS__KEY": OLDER_KEY})

    assert "does not match this database's passwords" in line


def test_production_startup_without_schema_fails(tmp_path: Path, postgres_url: URL) -> None:
    environ = {
        **PRODUCTION,
        "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN,
        "MLAPI_DATABASE__URL": postgres_url.render_as_string(hide_password=False),
    }

    assert "run `mlapi db upgrade`" in run_failing_startup(tmp_path, environ)


# --- secrets


def test_no_response_or_log_contains_a_secret(start_server: StartServer, tmp_path: Path) -> None:
    environ = {**SECRETS, "MLAPI_SECRETS__ADMIN_TOKEN": ADMIN_TOKEN}
    server = start_server(environ, "--log-level", "trace")
    bearer = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    json_type = {"Content-Type": "application/json"}

    responses = [
        register(server, password=CANARY),
        register(server, password=CANARY),
        register(server, password=CANARY * 100),
        register(server, username="", password=CANARY),
        requests.post(f"{server.base}/register-user", json={"username": "x", "password": [CANARY]}, timeout=10),
        requests.post(f"{server.base}/register-user", json={CANARY: CANARY}, timeout=10),
        requests.post(f"{server.base}/register-user", json=CANARY, timeout=10),
        requests.post(f"{server.base}/register-user", data=f'{{"password": "{CANARY}"', headers=json_type, timeout=10),
        requests.put(f"{server.base}/toggle-user-permission/1/x", headers=bearer, timeout=10),
        requests.put(
            f"{server.base}/toggle-user-permission/1/0", headers={"Authorization": f"Bearer {CANARY}"}, timeout=10
        ),
    ]
    server.stop()

    output = server.log + "".join(response.text + str(response.headers) for response in responses)
    assert [response.status_code for response in responses] == [201, 409, 422, 422, 422, 422, 422, 400, 422, 401]
    for secret in (CANARY, KEY, SALT, ADMIN_TOKEN, "gAAAA", "$argon2id$"):
        assert secret not in output
    for path in tmp_path.glob("mlapi.db*"):
        assert CANARY.encode() not in path.read_bytes()
