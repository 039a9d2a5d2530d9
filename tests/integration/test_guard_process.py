"""A process that only runs a guard imports few modules and needs few packages."""

import subprocess
import sys
from pathlib import Path

import pytest
from bench.guard_memory import measure_synchronous, register

MAX_MEBIBYTES = 45
# PyJWT imports cryptography, which imports bcrypt, if they are installed.
NEVER_NEEDED = {
    *("alembic", "argon2", "click", "httptools", "itsdangerous", "jinja2", "prometheus_client", "psycopg"),
    *("sqlalchemy", "uvicorn", "uvloop"),
}
LIST_MODULES = """
import sys
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings

with open_guard(load_settings()) as guard:
    for credential in sys.argv[1:]:
        guard.check(credential)
print(*sys.modules)
"""
WITHOUT_OTHER_PACKAGES = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""
CALL_MIDDLEWARE = """
import asyncio, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings
from mlapi.entrypoints.guard import GuardMiddleware

async def call(app, credential):
    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        if message["type"] == "http.response.start":
            print(message["status"])

    headers = [(b"authorization", b"Bearer " + credential.encode())]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "query_string": b"", "root_path": ""}
    await app(scope, receive, send)

async def call_all(app):
    for credential in [*sys.argv[1:], "unknown"]:
        await call(app, credential)

with open_guard(load_settings()) as guard:
    route = Route("/", lambda request: PlainTextResponse(request.user.username))
    asyncio.run(call_all(GuardMiddleware(Starlette(routes=[route]), guard)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def credentials(folder: Path) -> list[str]:
    return register(folder)


def run(script: str, folder: Path, credentials: list[str]) -> str:
    command = [sys.executable, "-c", script, *credentials]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_guard_on_sqlite_imports_neither_sqlalchemy_nor_a_server(folder: Path, credentials: list[str]) -> None:
    modules = run(LIST_MODULES, folder, credentials).split()

    assert {module.partition(".")[0] for module in modules} & {*NEVER_NEEDED, "asyncio", "starlette"} == set()
    assert [module for module in modules if module.startswith(("mlapi.entrypoints", "mlapi.adapters.fernet"))] == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_guard_process_stays_below_45_mebibytes(folder: Path, credentials: list[str]) -> None:
    assert measure_synchronous(folder, credentials) < MAX_MEBIBYTES


def test_guard_runs_with_the_documented_packages_only(folder: Path, credentials: list[str]) -> None:
    blocked = NEVER_NEEDED | {"anyio", "bcrypt", "cryptography", "starlette"}
    script = WITHOUT_OTHER_PACKAGES.replace("BLOCKED", repr(blocked)) + LIST_MODULES

    assert "mlapi.application.guard" in run(script, folder, credentials)


def test_middleware_also_needs_starlette(folder: Path, credentials: list[str]) -> None:
    blocked = NEVER_NEEDED | {"bcrypt", "cryptography"}
    script = WITHOUT_OTHER_PACKAGES.replace("BLOCKED", repr(blocked)) + CALL_MIDDLEWARE

    assert run(script, folder, credentials).split() == ["200", "200", "401"]
