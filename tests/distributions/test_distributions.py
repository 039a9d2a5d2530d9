"""The wheel and the source distribution contain what they need, and work beside the libraries of an application."""

import os
import re
import subprocess
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import attrs
import pytest
import requests

from tests.e2e.server import ROOT, MlapiServer, Server

ADA = {"username": "ada", "password": "difference engine", "email": "ada@example.com"}
OLD_REVISION = "0002"
HOSTS = {
    ".whl": ["fastapi==0.115.0", "httpx", "pytest==8.0.0"],  # an application with the oldest versions
    ".tar.gz": ["fastapi", "httpx2", "pytest"],
}
"""Requirements that are installed before the wheel or the source distribution, by file name extension."""
UNWANTED = re.compile(r"__pycache__|\.pyc$|\.db$|secrets\.yml$|(^|/)\.(?!gitignore$)|^dist/")
"""Caches, and files that a running service leaves behind."""
GUARDED_APP = """
from fastapi import FastAPI, Request
from mlapi.entrypoints.guard import GuardMiddleware

app = FastAPI()
app.add_middleware(GuardMiddleware, exempt=["/health/live"])


@app.post("/predict")
async def predict(request: Request):
    return request.user.username
"""


@attrs.frozen
class Installation:
    """A virtual environment in which a distribution is installed, and a folder to run it in."""

    programs: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment, and return its output."""
        return self.run_with_settings({}, program, *arguments)

    def run_with_settings(self, environ: dict[str, str], program: str, *arguments: str) -> str:
        """Run a program with settings of mlapi in environment variables."""
        result = subprocess.run(
            [str(self.programs / program), *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout.strip()

    def install(self, *requirements: str) -> None:
        self.run("python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements)


class InstalledService(MlapiServer):
    """Runs the ``mlapi serve`` of an installation."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(installation.folder)
        self._programs = installation.programs

    def _command(self) -> list[str]:
        return [str(self._programs / "mlapi"), "serve", "--port", str(self.port)]


class GuardedApp(Server):
    """Runs an application in an installation."""

    def __init__(self, installation: Installation) -> None:
        super().__init__(installation.folder, app="guarded:app")
        self._programs = installation.programs

    def _command(self) -> list[str]:
        return [str(self._programs / "uvicorn"), self.app, "--port", str(self.port)]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> Path:
    return ROOT / str(request.config.getoption("--distributions"))


def find_distribution(folder: Path, extension: str) -> Path:
    (file,) = folder.glob(f"mlapi_users-*{extension}")
    return file


@pytest.fixture(scope="module", params=HOSTS)
def installation(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Install a distribution in a fresh environment, beside the libraries of an application."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    installed = Installation(environment / "bin", tmp_path_factory.mktemp("folder"))
    installed.install(*HOSTS[request.param])
    installed.install(str(find_distribution(built, request.param)))
    return installed


@pytest.fixture(scope="module")
def service(installation: Installation) -> Iterator[InstalledService]:
    with InstalledService(installation) as running:
        requests.post(f"{running.base}/register-user", json=ADA, timeout=10).raise_for_status()
        yield running


def test_wheel_contains_every_file_of_the_package(built: Path) -> None:
    with zipfile.ZipFile(find_distribution(built, ".whl")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}

    files = {str(file.relative_to(ROOT / "src")) for file in ROOT.glob("src/mlapi/**/*") if file.is_file()}
    assert names == {name for name in files if not name.endswith(".pyc")}


def test_source_distribution_contains_sources_only(built: Path) -> None:
    with tarfile.open(find_distribution(built, ".tar.gz")) as source:
        names = {name.partition("/")[2] for name in source.getnames()}

    assert {"LICENSE", "README.md", "pyproject.toml", "src/mlapi/py.typed", "tests/conftest.py"} <= names
    assert [name for name in names if UNWANTED.search(name)] == []


def test_installed_packages_are_compatible(installation: Installation) -> None:
    assert installation.run("python", "-m", "pip", "check") == "No broken requirements found."


def test_command_line_manages_users(service: InstalledService, installation: Installation) -> None:
    assert re.fullmatch(r"mlapi, version \d+\.\d+\.\d+", installation.run("mlapi", "--version"))
    assert "ada" in installation.run("mlapi", "users", "list")
    assert installation.run("python", "-m", "mlapi", "doctor")


def test_service_registers_users_and_logs_them_in(service: InstalledService) -> None:
    again = requests.post(f"{service.base}/register-user", json=ADA, timeout=10)
    token = log_in(service)
    status = requests.get(f"{service.base}/token_status/{token}", timeout=10)

    assert (again.status_code, status.json()["message"]) == (409, "Token is valid")


def log_in(service: InstalledService) -> str:
    credentials = {"username": ADA["username"], "password": ADA["password"]}
    token: str = requests.post(f"{service.base}/token", json=credentials, timeout=10).json()["token"]
    return token


@pytest.mark.parametrize("page", ["/console", "/docs"])
def test_pages_and_their_assets_are_served(service: InstalledService, page: str) -> None:
    response = requests.get(service.base + page, timeout=10)
    assets = re.findall(r'(?:href|src)="([^"]+\.(?:css|js|svg|png|ico))[^"]*"', response.text)

    assert response.status_code == 200
    assert assets
    statuses = {asset: requests.get(urljoin(response.url, asset), timeout=10).status_code for asset in assets}
    assert statuses == dict.fromkeys(assets, 200)


def test_migrations_upgrade_an_older_database(installation: Installation) -> None:
    code = f"""
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.schema import upgrade
from mlapi.adapters.sql.urls import database_url
upgrade(Database(database_url("sqlite:///older.db")), {OLD_REVISION!r})
"""
    installation.run("python", "-c", code)
    settings = {"MLAPI_DATABASE__URL": "sqlite:///older.db"}

    assert OLD_REVISION in installation.run_with_settings(settings, "mlapi", "db", "upgrade")
    assert installation.run_with_settings(settings, "mlapi", "doctor")


def test_guard_protects_an_application(service: InstalledService, installation: Installation) -> None:
    (installation.folder / "guarded.py").write_text(GUARDED_APP, "utf-8")

    with GuardedApp(installation) as app:
        answers = [
            requests.post(f"{app.base}/predict", headers=headers, timeout=10)
            for headers in ({}, {"Authorization": f"Bearer {log_in(service)}"})
        ]

    assert [answer.status_code for answer in answers] == [401, 200]
    assert answers[1].json() == "ada"


def test_testing_kit_works_in_the_environment(installation: Installation) -> None:
    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    for name in ("conftest.py", "test_application.py"):
        (code,) = re.findall(rf"^```python\n# {name}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        (installation.folder / name).write_text(code, "utf-8")

    assert "3 passed" in installation.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
