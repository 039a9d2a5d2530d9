"""Managers in several server processes that share one database, which other processes change."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import requests

from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.managers import ManagerRegistry
from mlapi.domain.users import utc_now
from tests.e2e.server import Server

ROUNDS = 10
CLIENTS = 4


@attrs.frozen
class World:
    """Two plain uvicorn processes, their database, and the environment for commands."""

    servers: tuple[Server, Server]
    managers: ManagerRegistry
    environ: dict[str, str]
    folder: Path


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("managers")
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/mlapi.db"
        if request.param == "postgres":
            postgres_url = stack.enter_context(request.getfixturevalue("postgres").new_database())
            url = postgres_url.render_as_string(hide_password=False)
        environ = {"MLAPI_DATABASE__URL": url, "MLAPI_SECRETS__ADMIN_TOKEN": "c4n4ry-admin-token"}
        first = stack.enter_context(Server(folder, environ))
        second = stack.enter_context(Server(folder, environ))
        storage = stack.enter_context(closing(SqlStorage.from_url(url)))
        yield World((first, second), ManagerRegistry(storage.managers), environ, folder)


def statuses(world: World, token: str) -> list[int]:
    """Send a request with this token to each process. Return the status codes."""
    headers = {"Authorization": f"Bearer {token}"}
    return [requests.get(f"{server.base}/users", headers=headers, timeout=15).status_code for server in world.servers]


def hammer(world: World, token: str, is_over: Callable[[], bool]) -> list[int]:
    """Send requests until ``is_over`` is true. Return the status codes of requests that started after that."""
    while not is_over():
        statuses(world, token)
    return statuses(world, token)


def test_changes_are_effective_at_the_next_request_everywhere(world: World) -> None:
    managers, wrong = world.managers, []
    for number in range(ROUNDS):
        name = f"alice{number}"
        first = managers.add(name=name, role="admin").token
        wrong += [("added", status) for status in statuses(world, first) if status != 200]
        changed: list[str] = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(hammer, world, first, lambda: bool(changed)) for _ in range(CLIENTS)]  # noqa: B023 - used in this round only
            second = managers.rotate(name).token
            changed.append(second)
            wrong += [("rotated", status) for future in running for status in future.result() if status != 401]
        wrong += [("new token", status) for status in statuses(world, second) if status != 200]
        managers.remove(name)
        wrong += [("removed", status) for status in statuses(world, second) if status != 401]

    assert wrong == []


def test_expired_token_is_rejected_by_every_process(world: World) -> None:
    end = utc_now() + timedelta(seconds=2)
    token = world.managers.add(name="short", role="viewer", expires_datetime=end).token

    before = statuses(world, token) if utc_now() < end - timedelta(seconds=1) else [200, 200]
    while utc_now() < end:
        statuses(world, token)

    assert (before, statuses(world, token)) == ([200, 200], [401, 401])


def test_one_of_several_commands_adds_the_manager(world: World) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLAPI_")}
    command = [sys.executable, "-m", "mlapi", "managers", "add", "racer", "--role", "viewer"]
    processes = [
        subprocess.Popen(
            command,
            cwd=world.folder,
            env={**inherited, **world.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    results = [process.communicate(timeout=60) for process in processes]

    (token,) = [out.strip() for out, _ in results if out]
    assert statuses(world, token) == [200, 200]
    assert sorted(process.returncode for process in processes) == [0, 3, 3]
    assert sum("manager racer already exists" in errors for _, errors in results) == 2


def test_tokens_of_managers_are_never_logged(world: World) -> None:
    token = world.managers.add(name="secret", role="admin").token
    headers = {"Authorization": f"Bearer {token}"}
    for server in world.servers:
        for path in ("users", f"users/{token}", token, f"users?q={token}", f"token_status/{token}"):
            requests.get(f"{server.base}/{path}", headers=headers, timeout=15)
        requests.get(f"{server.base}/users", headers={"Authorization": f"Bearer {token}0"}, timeout=15)

    assert [server for server in world.servers if token[-64:] in server.log] == []
