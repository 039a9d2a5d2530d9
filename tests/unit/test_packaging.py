"""The installed package: public names, import side effects, types, no secrets."""

import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlapi
from tests.conftest import KEY, SALT

ROOT = Path(__file__).parents[2]
# The format of a Fernet key: 32 bytes in URL-safe base64.
FERNET_KEY = re.compile(rb"(?<![\w+/=-])[\w-]{43}=(?![\w+/=])")
PUBLISHED_KEY = b"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="  # from the test vectors of the Fernet specification


def run_python(code: str, folder: Path, **environ: str) -> list[str]:
    """Run code in an isolated Python process and return the lines it prints."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def test_public_names_are_sorted() -> None:
    assert sorted(mlapi.__all__) == mlapi.__all__


def test_http_package_offers_only_the_application() -> None:
    from mlapi.entrypoints import http  # noqa: PLC0415 - imported here, as a program would

    assert (http.create_app.__module__, callable(http.app)) == ("mlapi.entrypoints.application", True)
    with pytest.raises(AttributeError, match=r"^module 'mlapi\.entrypoints\.http' has no attribute 'application'$"):
        _ = http.application


def test_public_names_exist() -> None:
    assert [name for name in mlapi.__all__ if not hasattr(mlapi, name)] == []


def test_names_imported_into_the_package_are_public() -> None:
    own_names = [
        name
        for name, value in vars(mlapi).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("mlapi.")
    ]

    assert set(own_names) <= set(mlapi.__all__)


def test_version_matches_the_installed_package() -> None:
    assert mlapi.__version__ == importlib.metadata.version("mlapi-users")


def test_documented_lowest_versions_are_the_tested_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    stated = "\n".join([*project["dependencies"], *extras["postgres"], *extras["testing"]])
    lock = (ROOT / "requirements-lowest.lock").read_text("utf-8")
    table = (ROOT / "docs" / "embed.md").read_text("utf-8").partition("\n## Supported versions\n")[2]
    lowest, locked, documented = (
        {name.lower(): as_numbers(version) for name, version in re.findall(pattern, text, re.MULTILINE)}
        for pattern, text in (
            (r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", stated),
            (r"^([\w-]+)==([\d.]*\d)", lock),
            (r"^\| ([\w-]+).*? \| ([\d.]+)", table),
        )
    )

    assert documented.pop("python") == as_numbers(project["requires-python"].removeprefix(">="))
    clients = {"httpx", "httpx2"}  # for Starlette's test client
    assert documented == {name: version for name, version in lowest.items() if name not in clients}
    del lowest["pytest"]  # mlapi's own tests need a newer pytest; tests/distributions installs the lowest
    assert lowest == {name: locked[name] for name in lowest}


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_snippets_need_only_what_make_run_installs(page: str) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    imported = set(re.findall(r"^(?:>>> )?(?:from|import) (\w+)", "".join(snippets), re.MULTILINE))
    locked = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE))

    assert imported - sys.stdlib_module_names - {"mlapi"} <= locked


def as_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without zeros at the end."""
    return tuple(map(int, re.sub(r"(\.0)+$", "", version).split(".")))


def test_package_is_marked_as_typed() -> None:
    assert importlib.resources.files("mlapi").joinpath("py.typed").is_file()


def test_import_loads_no_heavy_libraries_and_writes_no_files(tmp_path: Path) -> None:
    heavy = "alembic argon2 click cryptography jwt limits msgspec psycopg sqlalchemy starlette uvicorn yaml"
    code = f"import sys, mlapi; print(sorted(sys.modules.keys() & set('{heavy}'.split())))"

    assert run_python(code, tmp_path) == ["[]"]
    assert list(tmp_path.iterdir()) == []


def test_application_imports_mail_libraries_only_to_send_mail(tmp_path: Path) -> None:
    libraries = "jinja2 smtplib email.headerregistry"
    code = f"import sys, mlapi.entrypoints.application; print(sorted(sys.modules.keys() & set('{libraries}'.split())))"

    assert run_python(code, tmp_path) == ["[]"]


def test_application_on_sqlite_loads_only_what_it_needs(tmp_path: Path) -> None:
    unneeded = (
        "alembic jinja2 mlapi.adapters.sql.adoption mlapi.adapters.sql.indexes mlapi.adapters.sql.postgresql"
        " mlapi.application.user_import mlapi.bootstrap.backups mlapi.bootstrap.maintenance"
        " mlapi.entrypoints.wire.openapi psycopg smtplib sqlalchemy.dialects.postgresql"
    )
    code = (
        "import sys; from mlapi.bootstrap import open_service; from mlapi.config import load_settings;"
        "import mlapi.entrypoints.application\n"
        "with open_service(load_settings()): pass\n"
        f"print(sorted(sys.modules.keys() & set('{unneeded}'.split())))"
    )

    secrets = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}
    run_python(code, tmp_path, **secrets)  # creates the database

    assert run_python(code, tmp_path, **secrets) == ["[]"]


@pytest.mark.parametrize("command", [(), ("users",), ("keys",), ("serve",), ("db",), ("doctor",)])
def test_help_of_the_command_line_loads_no_heavy_libraries(command: tuple[str, ...], tmp_path: Path) -> None:
    heavy = "alembic argon2 cryptography jinja2 jwt psycopg sqlalchemy starlette uvicorn"
    code = (
        "import atexit, sys; from mlapi.entrypoints.cli import main\n"
        f"atexit.register(lambda: print(sorted(sys.modules.keys() & set('{heavy}'.split()))))\n"
        f"main({[*command, '--help']})"
    )

    assert run_python(code, tmp_path)[-1] == "[]"


def test_fakes_import_neither_pytest_nor_heavy_libraries(tmp_path: Path) -> None:
    heavy = "alembic argon2 click cryptography httpx2 jwt limits msgspec pytest sqlalchemy starlette uvicorn yaml"
    code = f"import sys, mlapi.testing; print(sorted(sys.modules.keys() & set('{heavy}'.split())))"

    assert run_python(code, tmp_path) == ["[]"]


def test_import_of_the_application_has_no_side_effects(tmp_path: Path) -> None:
    code = "from mlapi.entrypoints.http import app; print(callable(app))"

    assert run_python(code, tmp_path, MLAPI_CONFIG="/nowhere.yml", MLAPI_NONSENSE__KEY="x") == ["True"]
    assert list(tmp_path.iterdir()) == []


def test_repository_contains_no_key() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    output = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    excluded = (b"tests/", b"src/mlapi/entrypoints/static/swagger-ui/")  # some minified names look like keys
    files = [ROOT / name.decode() for name in output.split(b"\0") if name and not name.startswith(excluded)]

    keys = {
        (str(file.relative_to(ROOT)), key)
        for file in files
        if file.is_file()
        for key in FERNET_KEY.findall(file.read_bytes())
    }

    assert keys <= {("src/mlapi/config/validation.py", PUBLISHED_KEY)}
