"""Measure the memory of a process that only guards: `python -m bench.guard_memory`, on Linux.

Prints the resident set size after 1,000 checks of a token and of an API key, for each kind of process.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import requests
from tests.e2e.server import Server

REGISTER = """
from mlapi.bootstrap import open_service
from mlapi.config import load_settings

with open_service(load_settings()) as service:
    ada = service.users.register(username="ada", password="difference engine", email="ada@example.com")
    print(service.access.authenticator.log_in(username="ada", password="difference engine").token)
    print(service.users.add_api_key(user_id=ada.id, name="job")[1])
"""
SYNCHRONOUS = """
import sys
from mlapi.bootstrap import open_guard
from mlapi.config import load_settings

with open_guard(load_settings()) as guard:
    for _ in range(1_000):
        for credential in sys.argv[1:]:
            assert guard.check(credential).username == "ada"
    print(*(line for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
APPLICATION = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from mlapi.entrypoints.guard import GuardMiddleware

app = GuardMiddleware(Starlette(routes=[Route("/", lambda request: PlainTextResponse(request.user.username))]))
"""
BARE_APPLICATION = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ada"))])
"""


def register(folder: Path) -> list[str]:
    """Create a database with a user, and return a token and an API key."""
    command = [sys.executable, "-c", REGISTER]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()


def measure_synchronous(folder: Path, credentials: list[str]) -> float:
    """Return the MiB of a process that calls `Guard.check`."""
    command = [sys.executable, "-c", SYNCHRONOUS, *credentials]
    return _mebibytes(subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout)


def measure_uvicorn(folder: Path, credentials: list[str], application: str) -> float:
    """Return the MiB of a uvicorn worker with a Starlette application."""
    (folder / "guarded.py").write_text(application, "utf-8")
    options = ("--log-level", "warning")
    with Server(folder, {"PYTHONPATH": str(folder)}, *options, app="guarded:app") as server:
        for _ in range(1_000):
            for credential in credentials:
                response = requests.get(server.base, headers={"Authorization": f"Bearer {credential}"}, timeout=30)
                assert response.text == "ada"
        return _mebibytes(Path(f"/proc/{server.pid}/status").read_text("utf-8"))


def _mebibytes(status: str) -> float:
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        credentials = register(folder)
        print(f"open_guard and Guard.check: {measure_synchronous(folder, credentials):.0f} MiB")
        secrets = folder / "secrets.yml"
        hidden = secrets.rename(folder / "hidden.yml")
        print(f"the same with API keys only: {measure_synchronous(folder, credentials[1:]):.0f} MiB")
        hidden.rename(secrets)
        print(f"uvicorn and Starlette alone: {measure_uvicorn(folder, credentials, BARE_APPLICATION):.0f} MiB")
        print(f"the same with GuardMiddleware: {measure_uvicorn(folder, credentials, APPLICATION):.0f} MiB")


if __name__ == "__main__":
    main()
