"""The Starlette application: its lifespan, thread pools and logging. `HttpContract` tests the HTTP contract."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Message, Scope
from starlette.websockets import WebSocketDisconnect

from mlapi import Command, ConfigurationError, Outcome, UserId, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.batching import CommandBatcher
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app, middleware, runtime
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADMIN_TOKEN, LOCAL_MODE, content
from mlapi.testing.http_samples import ADA
from mlapi.testing.samples import registered
from tests.contract.test_http import asgi_client


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class SlowCipher(PlainCipher):
    """Blocks in `encrypt` until released."""

    is_costly = True

    def __init__(self) -> None:
        self.released = threading.Event()
        self.passwords: list[str] = []

    def encrypt(self, password: str) -> EncryptedPassword:
        self.passwords.append(password)
        self.released.wait(10)
        return super().encrypt(password)


class HangingRepository(InMemoryUserRepository):
    """Blocks in `apply` until `released` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()
        self.released.set()

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        self.released.wait(10)
        return super().apply(commands, commit_by=commit_by)


class BrokenRepository(UnavailableRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        raise ZeroDivisionError("unexpected")


def test_configured_app_starts_serves_and_stops(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MLAPI_SECRETS__ADMIN_TOKEN", ADMIN_TOKEN)
    as_admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    with asgi_client(create_app()) as client:
        created = client.post("/register-user", json=ADA)
        removed = client.delete(f"/remove-user/{created.json()['user_id']}", headers=as_admin)
        ready = client.get("/health/ready")

    assert (created.status_code, removed.status_code, ready.status_code) == (201, 200, 200)
    assert sorted(path.name for path in folder.iterdir()) == ["mlapi.db", "secrets.yml"]
    assert "mlapi 0.1.0, profile development" in caplog.messages
    assert [line for line in caplog.messages if line.startswith("management: token mode")]


def test_configuration_error_is_one_line_at_startup(folder: Path) -> None:
    (folder / "config.yml").write_text("databse: {url: x}")

    assert lifespan_messages() == [
        {
            "type": "lifespan.startup.failed",
            "message": "mlapi: config.yml: databse is not a setting; did you mean database?",
        }
    ]


def test_unexpected_error_at_startup_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(runtime, "load_settings", broken)

    with pytest.raises(ZeroDivisionError):
        lifespan_messages()


def test_unexpected_error_in_the_lifespan_is_raised() -> None:
    async def run() -> None:
        async def fail(_scope: Scope, _receive: object, _send: object) -> None:
            raise ZeroDivisionError

        await middleware.StartupErrorMiddleware(fail)({"type": "lifespan"}, _startup, _ignore)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


async def _startup() -> Message:
    return {"type": "lifespan.startup"}


async def _ignore(_message: Message) -> None:
    pass


def lifespan_messages() -> list[Message]:
    """Run the lifespan of an application without a server, and return the messages it sends."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with suppress(ConfigurationError):  # servers ignore an exception after the failure message
        asyncio.run(create_app()({"type": "lifespan", "state": {}}, _startup, send))
    return sent


def test_logs_go_to_stderr_unless_logging_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    logger, root = logging.getLogger("mlapi"), logging.getLogger()
    root_handlers, root.handlers = root.handlers, []
    try:
        with asgi_client(create_app()):
            pass
    finally:
        root.handlers = root_handlers
        logger.handlers = []
        logger.setLevel(logging.NOTSET)

    assert "INFO:     mlapi 0.1.0, profile development\n" in capsys.readouterr().err


def test_app_with_given_users_reads_and_writes_no_files(folder: Path) -> None:
    (folder / "config.yml").write_text("this: is not read")

    with asgi_client(create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE)) as client:
        assert client.get("/health/ready").json() == {"message": "Ready"}

    assert [path.name for path in folder.iterdir()] == ["config.yml"]


def test_health_endpoints_are_open_and_report_the_database() -> None:
    remote = {"host": "example.com", "x-forwarded-for": "8.8.8.8"}
    client = asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()), AdminPolicy(local=False)))

    live, ready = client.get("/health/live", headers=remote), client.get("/health/ready", headers=remote)

    assert content(live) == (200, {"message": "Alive"})
    assert content(ready) == (503, {"message": "Service unavailable, try again"})
    assert ready.headers["retry-after"] == "1"


def test_unavailable_database_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()), LOCAL_MODE)).delete("/remove-user/1")

    assert caplog.messages == ["DELETE /remove-user/1: the database is unavailable: simulated outage"]


def test_unexpected_error_returns_500_without_details() -> None:
    app = create_app(Users(BrokenRepository(), PlainCipher()), LOCAL_MODE)
    client = TestClient(app, base_url="http://127.0.0.1:8001", client=("127.0.0.1", 5), raise_server_exceptions=False)

    response = client.delete("/remove-user/1")

    assert content(response) == (500, {"message": "Internal Server Error"})


def test_mounted_service_enforces_admin_access() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())
    client = asgi_client(Starlette(routes=[Mount("/accounts", create_app(users, LOCAL_MODE))]))

    created = client.post("/accounts/register-user", json=ADA, headers={"host": "example.com"})
    rejected = client.delete("/accounts/remove-user/1", headers={"host": "example.com"})
    removed = client.delete("/accounts/remove-user/1")

    assert [created.status_code, rejected.status_code, removed.status_code] == [201, 403, 200]


def test_websockets_are_rejected() -> None:
    client = asgi_client(create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE))

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/register-user"):
        pass


def test_disconnect_while_sending_is_counted_as_status_499() -> None:
    app = create_app(Users(InMemoryUserRepository(), PlainCipher()), LOCAL_MODE)
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/register-user",
        "http_version": "1.1",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
        "query_string": b"",
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8001),
    }

    async def disconnect() -> Message:
        return {"type": "http.disconnect"}

    async def fail(_message: Message) -> None:
        raise AssertionError("the client has disconnected")

    asyncio.run(app(scope, disconnect, fail))

    metrics = app.state.runtime.metrics.exposition().decode()
    assert 'mlapi_requests_total{endpoint="register_user",method="POST",status="499"} 1.0' in metrics


def test_health_responds_while_passwords_are_hashed() -> None:
    cipher = SlowCipher()

    async def run() -> tuple[int, int, int]:
        app = create_app(Users(InMemoryUserRepository(), cipher), LOCAL_MODE)
        transport = httpx2.ASGITransport(app, client=("127.0.0.1", 5))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
            registering = [
                asyncio.create_task(client.post("/register-user", json={**ADA, "username": f"ada{number}"}))
                for number in range(8)
            ]
            await asyncio.sleep(0.05)
            live = await client.get("/health/live")
            toggled = await client.put("/toggle-user-permission/1/0")
            cipher.released.set()
            created = await asyncio.gather(*registering)
            return live.status_code, toggled.status_code, sum(response.status_code == 201 for response in created)

    assert asyncio.run(run()) == (200, 404, 8)


def test_commands_that_time_out_are_not_applied_later() -> None:
    repository = HangingRepository()
    users = [registered(repository, name) for name in ("ada", "bob", "eve")]
    app = create_app(Users(repository, PlainCipher()), LOCAL_MODE)
    runtime = app.state.runtime
    commands = CommandBatcher(repository, timeout_seconds=0.1)
    app.state.runtime = attrs.evolve(runtime, executor=attrs.evolve(runtime.executor, commands=commands))
    repository.released.clear()

    async def run() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app, client=("127.0.0.1", 5))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
            first = asyncio.create_task(client.delete("/remove-user/1"))
            await asyncio.sleep(0.02)
            late = [await first, *await asyncio.gather(*[client.delete(f"/remove-user/{n}") for n in (2, 3)])]
            repository.released.set()
            return [*late, await client.delete("/remove-user/4")]

    *late, last = asyncio.run(run())

    outcome_unknown = "Service unavailable, try again: this may have been done already"
    assert [content(response) for response in late] == [(503, {"message": outcome_unknown})] * 3
    assert last.status_code == 404
    assert repository.list_page(after=UserId(0), limit=9) == users
