"""The Starlette application beyond what every framework says: its life, its threads, its log."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import attrs
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import Message, Scope
from starlette.websockets import WebSocketDisconnect

from mlapi import Command, Outcome, ServiceUnavailableError, UserId, Users
from mlapi.adapters.memory import InMemoryUserRepository, PlainCipher
from mlapi.application.batching import CommandBatcher
from mlapi.domain.users import EncryptedPassword
from mlapi.entrypoints.admin import AdminPolicy
from mlapi.entrypoints.http import create_app
from mlapi.entrypoints.http import middleware as asgi
from mlapi.entrypoints.http import runtime as serving
from mlapi.entrypoints.http.thread_pool import BoundedThreadPool
from mlapi.testing import UnavailableRepository
from mlapi.testing.http import ADA, content
from mlapi.testing.samples import registered
from tests.contract.test_http import asgi_client


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class SlowCipher(PlainCipher):
    """A cipher that takes its time until it is let go."""

    is_costly = True

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def encrypt(self, password: str) -> EncryptedPassword:
        self.asked.append(password)
        self.go_on.wait(10)
        return super().encrypt(password)


class HangingRepository(InMemoryUserRepository):
    """A repository whose database can be made to say nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()

    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        self.go_on.wait(10)
        return super().apply(commands, commit_by=commit_by)


class BrokenRepository(UnavailableRepository):
    def apply(self, commands: Sequence[Command], *, commit_by: float | None = None) -> list[Outcome]:
        raise ZeroDivisionError("a fault of ours")


def test_the_configured_application_reads_makes_serves_and_closes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    with asgi_client(create_app()) as client:
        created = client.post("/register-user", json=ADA)
        removed = client.delete(f"/remove-user/{created.json()['user_id']}")
        ready = client.get("/health/ready")

    assert (created.status_code, removed.status_code, ready.status_code) == (201, 200, 200)
    assert sorted(path.name for path in folder.iterdir()) == ["mlapi.db", "secrets.yml"]
    assert "mlapi 0.1.0, profile development" in caplog.messages
    assert [line for line in caplog.messages if line.startswith("management: local mode")]


def test_what_refuses_a_start_is_told_in_one_line(folder: Path) -> None:
    (folder / "config.yml").write_text("databse: {url: x}")

    assert lifespan_messages() == [
        {
            "type": "lifespan.startup.failed",
            "message": "mlapi: config.yml: databse is not a setting; did you mean database?",
        }
    ]


def test_a_fault_of_ours_at_the_start_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(serving, "load_settings", broken)

    with pytest.raises(ZeroDivisionError):
        lifespan_messages()


def test_a_fault_after_the_start_is_passed_on() -> None:
    async def run() -> None:
        async def fail(_scope: Scope, _receive: object, _send: object) -> None:
            raise ZeroDivisionError

        await asgi.StartupErrorMiddleware(fail)({"type": "lifespan"}, _startup, _ignore)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


async def _startup() -> Message:
    return {"type": "lifespan.startup"}


async def _ignore(_message: Message) -> None:
    pass


def lifespan_messages() -> list[Message]:
    """Start an application without a server, and return what it tells of its start."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(create_app()({"type": "lifespan", "state": {}}, _startup, send))
    return sent


def test_our_lines_are_shown_where_nobody_else_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    logger, root = logging.getLogger("mlapi"), logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        with asgi_client(create_app()):
            pass
    finally:
        root.handlers = kept
        logger.handlers = []
        logger.setLevel(logging.NOTSET)

    assert "INFO:     mlapi 0.1.0, profile development\n" in capsys.readouterr().err


def test_an_application_with_users_reads_and_makes_nothing(folder: Path) -> None:
    (folder / "config.yml").write_text("this: is not read")

    with asgi_client(create_app(Users(InMemoryUserRepository(), PlainCipher()))) as client:
        assert client.get("/health/ready").json() == {"message": "Ready"}

    assert [path.name for path in folder.iterdir()] == ["config.yml"]


def test_health_is_open_to_all_and_knows_the_database() -> None:
    elsewhere = {"host": "example.com", "x-forwarded-for": "8.8.8.8"}
    client = asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()), AdminPolicy(local=False)))

    live, ready = client.get("/health/live", headers=elsewhere), client.get("/health/ready", headers=elsewhere)

    assert content(live) == (200, {"message": "Alive"})
    assert content(ready) == (503, {"message": "Service unavailable, try again"})
    assert ready.headers["retry-after"] == "1"


def test_an_unavailable_database_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    asgi_client(create_app(Users(UnavailableRepository(), PlainCipher()))).delete("/remove-user/1")

    assert caplog.messages == ["DELETE /remove-user/1: the database is unavailable: simulated outage"]


def test_a_fault_of_ours_is_answered_in_json_and_shows_nothing() -> None:
    app = create_app(Users(BrokenRepository(), PlainCipher()))
    client = TestClient(app, base_url="http://127.0.0.1:8001", client=("127.0.0.1", 5), raise_server_exceptions=False)

    response = client.delete("/remove-user/1")

    assert content(response) == (500, {"message": "Internal Server Error"})


def test_the_service_is_mounted_under_another_application_with_its_rules() -> None:
    users = Users(InMemoryUserRepository(), PlainCipher())
    client = asgi_client(Starlette(routes=[Mount("/accounts", create_app(users))]))

    created = client.post("/accounts/register-user", json=ADA, headers={"host": "example.com"})
    refused = client.delete("/accounts/remove-user/1", headers={"host": "example.com"})
    removed = client.delete("/accounts/remove-user/1")

    assert [created.status_code, refused.status_code, removed.status_code] == [201, 403, 200]


def test_a_web_socket_is_not_accepted() -> None:
    client = asgi_client(create_app(Users(InMemoryUserRepository(), PlainCipher())))

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/register-user"):
        pass


def test_a_client_that_leaves_while_sending_is_no_fault_of_ours() -> None:
    app = create_app(Users(InMemoryUserRepository(), PlainCipher()))
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

    async def nobody_is_there(_message: Message) -> None:
        raise AssertionError("nobody is there to be answered")

    asyncio.run(app(scope, disconnect, nobody_is_there))

    counted = app.state.runtime.metrics.exposition().decode()
    assert 'mlapi_requests_total{endpoint="register_user",method="POST",status="499"} 1.0' in counted


def test_health_answers_while_hashing_takes_its_time() -> None:
    cipher = SlowCipher()

    async def run() -> tuple[int, int, int]:
        app = create_app(Users(InMemoryUserRepository(), cipher))
        transport = httpx2.ASGITransport(app, client=("127.0.0.1", 5))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
            registering = [
                asyncio.create_task(client.post("/register-user", json={**ADA, "username": f"ada{number}"}))
                for number in range(8)
            ]
            await asyncio.sleep(0.05)
            live = await client.get("/health/live")
            toggled = await client.put("/toggle-user-permission/1/0")
            cipher.go_on.set()
            created = await asyncio.gather(*registering)
            return live.status_code, toggled.status_code, sum(answer.status_code == 201 for answer in created)

    assert asyncio.run(run()) == (200, 404, 8)


def test_who_waits_too_long_is_told_and_what_had_not_reached_its_commit_is_never_made() -> None:
    repository = HangingRepository()
    users = [registered(repository, name) for name in ("ada", "bob", "eve")]
    app = create_app(Users(repository, PlainCipher()))
    app.state.runtime = attrs.evolve(app.state.runtime, commands=CommandBatcher(repository, timeout_seconds=0.1))
    repository.go_on.clear()

    async def run() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app, client=("127.0.0.1", 5))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8001") as client:
            first = asyncio.create_task(client.delete("/remove-user/1"))
            await asyncio.sleep(0.02)
            late = [await first, *await asyncio.gather(*[client.delete(f"/remove-user/{n}") for n in (2, 3)])]
            repository.go_on.set()
            return [*late, await client.delete("/remove-user/4")]

    *late, last = asyncio.run(run())

    may_be_done = "Service unavailable, try again: this may have been done already"
    assert [content(answer) for answer in late] == [(503, {"message": may_be_done})] * 3
    assert last.status_code == 404
    assert repository.list_page(after=UserId(0), limit=9) == users


def test_passwords_that_wait_too_long_for_their_hash_are_told_and_never_hashed() -> None:
    cipher = SlowCipher()
    threads = BoundedThreadPool(1, max_queued_per_thread=10, timeout_seconds=0.1)

    async def run() -> list[object]:
        late = await asyncio.gather(*[threads.run(cipher.encrypt, name) for name in "abc"], return_exceptions=True)
        cipher.go_on.set()
        await threads.run(cipher.encrypt, "d")
        return list(late)

    late = asyncio.run(run())
    threads.close()

    assert late == [ServiceUnavailableError("no result within 0.1 seconds")] * 3
    assert cipher.asked == ["a", "d"]


def test_more_passwords_than_may_wait_are_refused_at_once() -> None:
    cipher = SlowCipher()
    threads = BoundedThreadPool(1, max_queued_per_thread=2, timeout_seconds=10)

    async def run() -> list[object]:
        calls = [asyncio.create_task(threads.run(cipher.encrypt, name)) for name in "abcde"]
        await asyncio.sleep(0.05)
        cipher.go_on.set()
        return list(await asyncio.gather(*calls, return_exceptions=True))

    results = asyncio.run(run())
    threads.close()

    assert results[3:] == [ServiceUnavailableError("too many requests are waiting")] * 2
    assert cipher.asked == ["a", "b", "c"]
