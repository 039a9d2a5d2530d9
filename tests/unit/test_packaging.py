"""What is installed: names, side effects, types, and no secret."""

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
# A Fernet key by its looks: 32 bytes in URL-safe base64.
FERNET_KEY = re.compile(rb"(?<![\w+/=-])[\w-]{43}=(?![\w+/=])")
PUBLISHED_KEY = b"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="  # of the Fernet specification's test vectors


def printed_by(code: str, folder: Path, **environ: str) -> list[str]:
    """Run it in a Python of its own, in a folder that is not on its path; return the lines that it prints."""
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.splitlines()


def test_public_names_are_sorted() -> None:
    assert sorted(mlapi.__all__) == mlapi.__all__


def test_public_names_are_there() -> None:
    assert [name for name in mlapi.__all__ if not hasattr(mlapi, name)] == []


def test_every_name_of_ours_that_the_package_holds_is_public() -> None:
    ours = [
        name
        for name, value in vars(mlapi).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("mlapi.")
    ]

    assert set(ours) <= set(mlapi.__all__)


def test_the_version_is_the_one_that_is_installed() -> None:
    assert mlapi.__version__ == importlib.metadata.version("mlapi")


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("mlapi").joinpath("py.typed").is_file()


def test_importing_mlapi_loads_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    heavy = "alembic argon2 click cryptography jwt limits msgspec psycopg sqlalchemy starlette uvicorn yaml"
    code = f"import sys, mlapi; print(sorted(sys.modules.keys() & set('{heavy}'.split())))"

    assert printed_by(code, tmp_path) == ["[]"]
    assert list(tmp_path.iterdir()) == []


def test_the_fakes_need_neither_pytest_nor_anything_heavy(tmp_path: Path) -> None:
    heavy = "alembic argon2 click cryptography httpx2 jwt limits msgspec pytest sqlalchemy starlette uvicorn yaml"
    code = f"import sys, mlapi.testing; print(sorted(sys.modules.keys() & set('{heavy}'.split())))"

    assert printed_by(code, tmp_path) == ["[]"]


def test_importing_the_application_reads_no_configuration_and_writes_nothing(tmp_path: Path) -> None:
    code = "from mlapi.entrypoints.http.application import app; print(callable(app))"

    assert printed_by(code, tmp_path, MLAPI_CONFIG="/nowhere.yml", MLAPI_NONSENSE__KEY="x") == ["True"]
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_the_repository_holds_a_key() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    others = (b"tests/", b"src/mlapi/entrypoints/static/swagger-ui/")  # whose names in a bundle look like keys
    files = [ROOT / name.decode() for name in listed.split(b"\0") if name and not name.startswith(others)]

    held = {
        (str(file.relative_to(ROOT)), key)
        for file in files
        if file.is_file()
        for key in FERNET_KEY.findall(file.read_bytes())
    }

    assert held <= {("src/mlapi/config/validation.py", PUBLISHED_KEY)}
