"""The import contracts hold, and each one detects an import that breaks it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

VIOLATIONS = [
    ("imports go in one direction", "application/users.py", "import mlapi.config"),
    ("imports go in one direction", "utils.py", "LIMIT = None  # a module that no layer lists"),
    ("imports go in one direction", "secret_store.py", "import mlapi.adapters.fernet"),
    ("imports go in one direction", "config/files.py", "import mlapi.secret_store"),
    ("imports go in one direction", "application/secret_rotation.py", "import mlapi.secret_store"),
    ("imports go in one direction", "adapters/jwt.py", "import mlapi.bootstrap"),
    ("inside the domain", "domain/users.py", "import mlapi.domain.commands"),
    ("inside the domain", "domain/credentials.py", "import mlapi.domain.commands"),
    ("inside the entry points", "entrypoints/http/handlers/users.py", "import mlapi.entrypoints.console"),
    ("inside the entry points", "entrypoints/pages/rendering.py", "import mlapi.entrypoints.console"),
    ("inside the entry points", "entrypoints/account/routes.py", "import mlapi.entrypoints.console"),
    ("inside the entry points", "entrypoints/utils.py", "LIMIT = None  # a module that no layer lists"),
    ("no package has a cycle of imports", "application/deadlines.py", "import mlapi.application.batching"),
    ("no package has a cycle of imports", "adapters/sql/pools.py", "import mlapi.adapters.sql.database"),
    ("the domain and the application import no database", "domain/commands.py", "import sqlalchemy"),
    ("the domain and the application import no database", "application/authentication.py", "import jwt"),
    ("the domain and the application import no database", "application/guard.py", "import itsdangerous"),
    ("the domain does no input or output", "domain/ports.py", "import threading"),
    ("the domain does no input or output", "domain/users.py", "import mlapi.forks"),
    ("only bootstrap imports adapters", "entrypoints/cli/doctor.py", "import mlapi.adapters.memory"),
    ("only bootstrap imports adapters", "secret_store.py", "import mlapi.adapters.fernet"),
    ("only bootstrap imports adapters", "__main__.py", "import mlapi.adapters.sql"),
    ("only bootstrap imports adapters", "__init__.py", "import mlapi.adapters.sql"),
    ("adapters import nothing but the domain", "adapters/fernet/ciphers.py", "import mlapi.application.users"),
    ("adapters import nothing but the domain", "adapters/jwt.py", "import mlapi.config"),
    ("no adapter imports another", "adapters/fernet/ciphers.py", "import mlapi.adapters.sql"),
    ("no adapter imports another", "adapters/memory/users.py", "import mlapi.adapters.jwt"),
    ("the wire format is independent", "entrypoints/wire/responses.py", "import starlette"),
    ("the wire format does not know", "entrypoints/wire/queries.py", "import mlapi.config"),
    (
        "only bootstrap imports the adoption",
        "adapters/sql/schema.py",
        "import mlapi.adapters.sql.adoption.survey",
    ),
    ("only the SQL adapter imports SQLAlchemy", "entrypoints/cli/users.py", "import sqlalchemy"),
    ("only the SQL adapter imports SQLAlchemy", "adapters/jwt.py", "import sqlalchemy"),
]


def broken_contracts(folder: Path) -> str:
    """Return the names of the contracts that a copy of the package breaks."""
    lint_imports = Path(sys.executable).with_name("lint-imports")
    environ = {**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "200"}
    result = subprocess.run(
        [lint_imports, "--no-cache"], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    broken = re.findall(r"^(.*) BROKEN(?: \(.*\))?$", result.stdout, re.MULTILINE)
    assert bool(result.returncode) == bool(broken), result.stdout + result.stderr
    return "; ".join(broken)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "src", tmp_path / "src")
    return tmp_path


def test_import_contracts_hold(copy: Path) -> None:
    assert broken_contracts(copy) == ""


def test_adapter_contract_lists_every_adapter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    folder = ROOT / "src" / "mlapi" / "adapters"

    (listed,) = [contract["modules"] for contract in contracts if contract["name"] == "no adapter imports another"]
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(listed) == sorted(f"mlapi.adapters.{name}" for name in modules - {"__init__"})


@pytest.mark.parametrize(("contract", "module", "line"), VIOLATIONS)
def test_import_contract_detects_a_forbidden_import(copy: Path, contract: str, module: str, line: str) -> None:
    with (copy / "src" / "mlapi" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")

    assert contract in broken_contracts(copy)
