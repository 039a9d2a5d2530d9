"""The installed package: public names, import side effects, types, no secrets."""

import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlapi

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
    assert mlapi.__version__ == importlib.metadata.version("mlapi")


def test_package_is_marked_as_typed() -> None:
    assert importlib.resources.files("mlapi").joinpath("py.typed").is_file()


def test_import_loads_no_heavy_libraries_and_writes_no_files(tmp_path: Path) -> None:
    heavy = "alembic argon2 click cryptography jwt limits msgspec psycopg sqlalchemy starlette uvicorn yaml"
    code = f"import sys, mlapi; print(sorted(sys.modules.keys() & set('{heavy}'.split())))"

    assert run_python(code, tmp_path) == ["[]"]
    assert list(tmp_path.iterdir()) == []


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
