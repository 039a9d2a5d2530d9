"""Idle connections that were cut: the first call of every operation succeeds, on a new connection."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import attrs
import httpx2
import psycopg
import pytest
from sqlalchemy import URL, Connection

from mlapi import RepositoryUnavailableError, User, UserId
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.postgresql import session
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.bootstrap import Service, async_guard, open_service
from mlapi.config import load_settings
from mlapi.domain.users import utc_now
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.wire.paths import CONSOLE_PATH
from mlapi.testing.http import LOCAL_MODE
from tests.conftest import KEY, SALT
from tests.contract.test_http import BASE, asgi_client
from tests.cut_connections import CuttingProxy
from tests.integration.html_page import Page
from tests.postgres_server import PostgresServer

PASSWORD = "difference engine"
SAME_ORIGIN = {"origin": BASE}


@attrs.frozen
class Open:
    """An open service with idle connections, and a client of its application."""

    service: Service
    client: httpx2.Client
    ada: User
    api_key: str
    token: str = ""
    csrf_token: str = ""

    @property
    def storage(self) -> SqlStorage:
        assert isinstance(self.service.storage, SqlStorage)
        return self.service.storage

    @property
    def authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def send(self, method: str, path: str, status: int = 200, **options: object) -> None:
        response = self.client.request(method, path, **options)  # type: ignore[arg-type]
        assert response.status_code == status, response.text

    def submit(self, path: str, **fields: object) -> None:
        """Submit a form of the console."""
        fields["csrf_token"] = self.csrf_token
        self.send("POST", CONSOLE_PATH + path, 303, data=fields, headers=SAME_ORIGIN, follow_redirects=False)


Operation = Callable[[Open], object]


async def check_async(opened: Open) -> User:
    with async_guard(opened.service.access.guard) as guard:
        return await guard.check(opened.token)


def ada_path(opened: Open, path: str = "") -> str:
    return f"/users/{opened.ada.id}{path}"


def new_name() -> str:
    return f"user{secrets.token_hex(4)}"


def register(opened: Open) -> User:
    return opened.service.users.register(username=new_name(), password=PASSWORD, email="user@example.com")


def upgrade(opened: Open) -> None:
    before, after = opened.storage.upgrade()
    assert before == after


OPERATIONS: dict[str, Operation] = {
    "POST /register-user": lambda opened: opened.send(
        "POST", "/register-user", 201, json={"username": new_name(), "password": PASSWORD, "email": "bob@example.com"}
    ),
    "PUT /toggle-user-permission": lambda opened: opened.send("PUT", f"/toggle-user-permission/{opened.ada.id}/1"),
    "DELETE /remove-user": lambda opened: opened.send("DELETE", "/remove-user/999", 404),
    "POST /token": lambda opened: opened.send("POST", "/token", json={"username": "ada", "password": PASSWORD}),
    "POST /token, wrong": lambda opened: opened.send("POST", "/token", 401, json={"username": "eve", "password": "no"}),
    "GET /token_status": lambda opened: opened.send("GET", "/token_status", headers=opened.authorization),
    "GET /users": lambda opened: opened.send("GET", "/users"),
    "GET /users?q": lambda opened: opened.send("GET", "/users?q=ada"),
    "GET /users/me": lambda opened: opened.send("GET", "/users/me", headers=opened.authorization),
    "GET /users/{user_id}": lambda opened: opened.send("GET", ada_path(opened)),
    "GET /users/{user_id}/keys": lambda opened: opened.send("GET", ada_path(opened, "/keys")),
    "POST /users/{user_id}/keys": lambda opened: opened.send(
        "POST", ada_path(opened, "/keys"), 201, json={"name": "another"}
    ),
    "DELETE /keys/{key_id}": lambda opened: opened.send("DELETE", "/keys/0123456789abcdef", 404),
    "PUT /users/{user_id}/password": lambda opened: opened.send(
        "PUT", ada_path(opened, "/password"), 204, json={"password": PASSWORD}
    ),
    "DELETE /users/{user_id}/tokens": lambda opened: opened.send("DELETE", ada_path(opened, "/tokens")),
    "GET /audit": lambda opened: opened.send("GET", "/audit"),
    "GET /health/ready": lambda opened: opened.send("GET", "/health/ready"),
    "console: users": lambda opened: opened.send("GET", CONSOLE_PATH),
    "console: search": lambda opened: opened.send("GET", f"{CONSOLE_PATH}?q=ada"),
    "console: user": lambda opened: opened.send("GET", CONSOLE_PATH + ada_path(opened)),
    "console: activity": lambda opened: opened.send("GET", f"{CONSOLE_PATH}/activity"),
    "console: enable": lambda opened: opened.submit(ada_path(opened, "/enabled"), enabled="1"),
    "guard, token": lambda opened: opened.service.access.guard.check(opened.token),
    "guard, API key": lambda opened: opened.service.access.guard.check(opened.api_key),
    "async guard": lambda opened: asyncio.run(check_async(opened)),
    "library: register": register,
    "library: find": lambda opened: opened.service.users.find("ada"),
    "library: iterate": lambda opened: list(opened.service.users.iterate_users()),
    "library: reencrypt": lambda opened: list(opened.service.users.reencrypt()),
    "library: count": lambda opened: opened.service.users.repository.count(),
    "audit per day": lambda opened: opened.storage.users.audit.count_per_day(since=utc_now() - timedelta(days=1)),
    "audit of a bulk request": lambda opened: opened.storage.users.audit.count_bulk(["request"], limit=9),
    "audit of removals": lambda opened: opened.storage.users.audit.find_removals([UserId(1)]),
    "audit retention": lambda opened: opened.storage.users.audit.purge(before=utc_now() - timedelta(days=1), limit=9),
    "prepare": lambda opened: opened.storage.prepare(may_upgrade=False),
    "upgrade": upgrade,
    "find fingerprint": lambda opened: opened.storage.find_fingerprint(),
    "store fingerprint": lambda opened: opened.storage.store_fingerprint("another"),
    "replace fingerprint": lambda opened: opened.storage.replace_fingerprint(opened.storage.find_fingerprint() or ""),
    "inspect": lambda opened: opened.storage.inspect(find_password_error=None),
}


@pytest.fixture(scope="module")
def proxy(postgres: PostgresServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(postgres.port) as running:
        yield running


@pytest.fixture(scope="module")
def opened(postgres: PostgresServer, proxy: CuttingProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """A service on PostgreSQL behind the proxy. It stays open for all tests."""
    with postgres.new_database() as url, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("service"))
        environ = {
            "MLAPI_DATABASE__URL": url.set(port=proxy.port).render_as_string(hide_password=False),
            "MLAPI_SECRETS__KEY": KEY,
            "MLAPI_SECRETS__SALT": SALT,
            "MLAPI_PASSWORDS__SCHEME": "fernet",  # faster
        }
        with open_service(load_settings(environ=environ)) as service:
            ada = service.users.register(username="ada", password=PASSWORD, email="ada@example.com")
            _, secret = service.users.add_api_key(user_id=ada.id, name="test")
            with asgi_client(create_app(service.users, LOCAL_MODE, service.access)) as client:
                yield Open(service, client, ada, secret)


@pytest.fixture
def idle(opened: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The service, with idle connections in all its pools, and a new token."""
    monkeypatch.setattr(session, "IDLE_SECONDS", 0.0)
    token = opened.service.access.authenticator.log_in(username="ada", password=PASSWORD).token
    opened.send("GET", "/users/me", headers={"authorization": f"Bearer {token}"})
    page = Page(opened.client, opened.client.get(f"{CONSOLE_PATH}/users/new"))
    return attrs.evolve(opened, token=token, csrf_token=page.form("Add user").fields["csrf_token"])


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("cut", ["terminated", "reset"])
def test_first_call_after_a_cut_succeeds(
    idle: Open, proxy: CuttingProxy, postgres: PostgresServer, cut: str, operation: Operation
) -> None:
    if cut == "reset":
        proxy.reset()
    else:
        database = idle.storage.database.engine.url.database
        postgres.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'")

    operation(idle)


def test_silently_cut_connections_fail_at_most_one_call(
    postgres: PostgresServer, postgres_url: URL, open_database: Callable[[URL], Database]
) -> None:
    def read() -> None:
        database.read(lambda connection: connection.exec_driver_sql("SELECT 1"))

    with CuttingProxy(postgres.port) as proxy:
        database = open_database(postgres_url.set(port=proxy.port))
        with database.reading(), database.reading(), database.reading():  # three connections that become idle
            pass
        proxy.silence()

        started_at = time.monotonic()
        with suppress(RepositoryUnavailableError):
            read()

        assert time.monotonic() - started_at < 10
        for _ in range(3):
            read()
        database.close()


def test_export_continues_after_a_cut(idle: Open, proxy: CuttingProxy) -> None:
    names = [register(idle).username for _ in range(3)]
    exporting = idle.service.users.iterate_users(batch_size=1)
    exported = [next(exporting).username]

    proxy.reset()
    exported += [user.username for user in exporting]

    assert exported[-3:] == names
    assert len(exported) == idle.service.users.repository.count()


def test_work_of_a_write_is_repeated_only_before_its_commit(
    idle: Open, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, calls = idle.storage.database, 0

    def work(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            proxy.reset()
        connection.exec_driver_sql("SELECT 1")

    def commit(_connection: object) -> None:
        raise psycopg.OperationalError("lost")

    database.write(work)
    assert calls == 2
    monkeypatch.setattr(database.dialect, "commit", commit)
    with pytest.raises(RepositoryUnavailableError):
        database.write(work)

    assert calls == 3
